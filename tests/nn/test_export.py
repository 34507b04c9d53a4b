"""Programs that leave Python: exported with dynamic sizes, compiled ahead of time, and for ONNX."""

import pytest
import torch
import torch.fx
from torch import nn

import projunn
from projunn.models import ResNet9
from projunn.nn import (
    BlockUnitaryLinear,
    GroupSort,
    LocalUnitaryConv2d,
    MaxMin,
    ModReLU,
    OrthogonalFinetuning,
    UnitaryConv2d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
)
from projunn.optim import SGD

needs_onnx = pytest.mark.requires("onnx", "onnxscript", "onnxruntime")


class States(nn.Module):
    """All states of a recurrent layer, real numbers as real and complex ones as pairs."""

    def __init__(self, **options):
        super().__init__()
        self.rnn = UnitaryRNN(3, 4, **options)

    def forward(self, x):
        states, _ = self.rnn(x)
        return torch.view_as_real(states) if states.is_complex() else states


def run_onnx(program, *inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [one.name for one in session.get_inputs()]
    return torch.from_numpy(
        session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))[0]
    )


@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
@pytest.mark.parametrize(
    "options",
    [{}, {"sketch_rank": 2}, {"dtype": torch.complex64}],
    ids=["dense", "sketched", "complex"],
)
def test_an_exported_rnn_takes_any_batch_and_length(options, strict):
    model = States(**options)
    sizes = ({0: torch.export.Dim("time", min=2), 1: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.randn(5, 2, 3),), dynamic_shapes=sizes, strict=strict)
    decomposed = program.run_decompositions()
    for time, batch in ((9, 4), (2, 1)):
        x = torch.randn(time, batch, 3)
        torch.testing.assert_close(program.module()(x), model(x))
        torch.testing.assert_close(decomposed.module()(x), model(x))


@pytest.mark.parametrize("sketch_rank", [None, 2])
def test_a_symbolic_trace_goes_through_real_linear_layers(sketch_rank):
    """And computes dense gradients, as an exported program does."""
    model = nn.Sequential(UnitaryLinear(4, 6, sketch_rank=sketch_rank), nn.ReLU())
    traced, x = torch.fx.symbolic_trace(model), torch.randn(3, 4)
    assert any(node.target is nn.functional.linear for node in traced.graph.nodes)
    torch.testing.assert_close(traced(x), model(x))
    assert [type(p) for p in traced.parameters()] == [type(p) for p in model.parameters()]
    optimizer = SGD(traced.parameters(), lr=1.0)
    traced(x).square().sum().backward()
    optimizer.step()
    assert projunn.unitarity_defect(getattr(traced, "0").weight).max() < 1e-6


class Leaves(torch.fx.Tracer):
    """As docs/modules.md has it."""

    def is_leaf_module(self, m, name):
        return type(m).__module__.startswith("projunn") or super().is_leaf_module(m, name)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: UnitaryLinear(4, 4, dtype=torch.complex64), (3, 4)),
        (lambda: BlockUnitaryLinear(2, 2), (3, 4)),
        (lambda: UnitaryConv2d(4, 4, 4), (3, 4, 4, 4)),
        (lambda: LocalUnitaryConv2d(4, 4, 3), (3, 4, 4, 4)),
        (lambda: UnitaryRNN(4, 5), (3, 2, 4)),
        (lambda: UnitaryRNNCell(4, 5), (3, 4)),
        (lambda: OrthogonalFinetuning(nn.Linear(4, 4), 2), (3, 4)),
        (lambda: GroupSort(2), (3, 4)),
    ],
)
def test_a_symbolic_trace_is_refused_by_other_layers_and_has_them_as_leaves(layer, shape):
    model, x = nn.Sequential(layer()), torch.randn(shape)
    with pytest.raises(TypeError, match=r"wanted a tensor: .*is_leaf_module.*torch\.export"):
        torch.fx.symbolic_trace(model)
    traced = torch.fx.GraphModule(model, Leaves().trace(model))
    torch.testing.assert_close(traced(x), model(x))


def test_an_exported_program_can_be_trained_with_dense_gradients():
    model = nn.Sequential(UnitaryLinear(4, 4, sketch_rank=2), UnitaryLinear(4, 4, sketch_rank=2))
    x = torch.randn(3, 4)
    trained = torch.export.export(model, (x,)).module()
    trained(x).square().sum().backward()
    dense = nn.Sequential(UnitaryLinear(4, 4), UnitaryLinear(4, 4))
    dense.load_state_dict(model.state_dict())
    dense(x).square().sum().backward()
    found = dict(trained.named_parameters())
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad)


@needs_onnx
def test_a_program_that_was_exported_before_goes_to_onnx():
    model = nn.Sequential(UnitaryConv2d(2, 3, (4, 3)), nn.Flatten(), UnitaryLinear(36, 5)).eval()
    sizes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (torch.randn(2, 2, 4, 3),), dynamic_shapes=sizes)
    program = torch.onnx.export(exported, dynamo=True, verbose=False)
    x = torch.randn(5, 2, 4, 3)
    torch.testing.assert_close(run_onnx(program, x), model(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@needs_onnx
def test_resnet9_goes_to_onnx():
    model, x = ResNet9(1, 3, 8, width=2).eval(), torch.randn(2, 1, 8, 8)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    torch.testing.assert_close(run_onnx(program, x), model(x).detach(), rtol=1e-4, atol=1e-4)


@needs_onnx
def test_a_dynamic_length_is_refused_for_onnx():
    sizes = ({0: torch.export.Dim("time", min=2)},)
    with pytest.raises(torch.onnx.OnnxExporterError) as caught:
        torch.onnx.export(
            States().eval(), (torch.randn(5, 2, 3),), dynamic_shapes=sizes, dynamo=True, verbose=False
        )
    assert "wanted a fixed one for ONNX" in str(caught.value)


@needs_onnx
def test_the_old_exporter_to_onnx_is_refused_by_the_operators_name(tmp_path):
    with pytest.raises(Exception, match="projunn::recurrence"):
        torch.onnx.export(
            States().eval(), (torch.randn(5, 2, 3),), tmp_path / "rnn.onnx", dynamo=False, verbose=False
        )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "layer",
    [UnitaryLinear(3, 3), UnitaryRNN(3, 3), UnitaryConv2d(2, 2, 3), MaxMin(), ModReLU(3)],
    ids=lambda layer: type(layer).__name__,
)
def test_torchscript_is_refused_in_words(layer):
    with pytest.raises(NotImplementedError, match=f"{type(layer).__name__}.*torch.compile.*to_plain"):
        torch.jit.script(nn.Sequential(layer))


@pytest.mark.slow
@pytest.mark.requires_cpp
def test_inductor_compiles_ahead_of_time(tmp_path):
    model = nn.Sequential(UnitaryConv2d(2, 3, (4, 3)), nn.Flatten(2), States(sketch_rank=2)).eval()
    model[2].rnn = UnitaryRNN(12, 4, sketch_rank=2)
    sizes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (torch.randn(2, 2, 4, 3),), dynamic_shapes=sizes)
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    x = torch.randn(5, 2, 4, 3)
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), model(x))
