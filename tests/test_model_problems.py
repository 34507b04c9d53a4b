"""What a model asks of the kernels: read off the model itself, in Triton's interpreter."""

import sys
import textwrap

import pytest
import torch
from torch import nn

import projunn
from projunn.model_problems import load_model, model_problems
from projunn_kernels.configs.problem import Problem

pytest.importorskip("triton")
interpreted = pytest.mark.interpreter_only  # a stand-in for a GPU
CPU = torch.device("cpu")


def asked(model, optimizer=None, **options):
    with projunn.backend("interpret"):
        return model_problems(model, optimizer, CPU, **options)


def operations(problems):
    return {problem.operation for problem in problems}


@interpreted
def test_small_weights_of_one_shape_are_one_fused_step():
    layers = nn.Sequential(*(projunn.nn.UnitaryLinear(64, 64) for _ in range(3)), nn.Linear(64, 64))
    assert asked(layers) == [Problem("fused_step", False, 1, 64, 64, 3)]


@interpreted
def test_large_weights_take_a_launch_for_each_pass_at_the_optimizers_rank():
    layer = projunn.nn.UnitaryLinear(300, 200, dtype=torch.complex64)
    optimizer = projunn.optim.RMSprop([{"params": layer.parameters(), "rank": 3}], lr=1e-3)
    found = asked(layer, optimizer)
    assert operations(found) == {"adjoint_product", "orthonormal", "product", "basis", "rotate_rows"}
    passes = [p for p in found if p.operation != "orthonormal"]
    assert {(p.pairs, p.columns, p.m, p.n, p.matrices) for p in passes} == {(True, 4, 200, 300, 1)}
    tall = projunn.nn.UnitaryLinear(200, 300)
    assert "rank_update" in operations(asked(tall))


@interpreted
def test_ranks_that_are_given_come_in_place_of_the_optimizers():
    layer = projunn.nn.UnitaryLinear(300, 300)
    optimizer = projunn.optim.SGD(layer.parameters(), lr=1e-3, rank=8)
    found = asked(layer, optimizer, ranks=[1, 4])
    assert {p.k for p in found} == {1, 4}


@interpreted
def test_time_loops_and_convolutions_are_asked_for_with_their_batch():
    rnn = projunn.nn.UnitaryRNN(3, 40, num_layers=2, batch_first=True)
    found = asked(rnn, batch=32, length=7)
    assert found[:2] == [
        Problem("recurrence", False, 1, 32, 40, 1),
        Problem("recurrence_backward", False, 1, 32, 40, 1),
    ]
    assert found[2:] == [Problem("fused_step", False, 1, 40, 40, 2)]
    found = asked(projunn.nn.UnitaryConv2d(4, 8, 6))
    assert found[0] == Problem("fourier_transform", False, 1, 6, 6, 4 * 256)
    assert found[1] == Problem("fourier_inverse", False, 1, 6, 6, 8 * 256)
    assert asked(projunn.nn.UnitaryConv2d(4, 8, 6), batch=16)[0].matrices == 4 * 16


@interpreted
def test_sketches_and_constrained_layers_of_pytorch_are_asked_for():
    layer = projunn.nn.UnitaryLinear(300, 200, sketch_rank=2)
    found = asked(layer, batch=64)
    assert Problem("adjoint_product", False, 2, 64, 300, 1) in found  # the activations
    assert Problem("rotate_rows", False, 1, 200, 300, 1) in found
    gru = projunn.constrain(nn.GRU(5, 33), "weight_hh_l0")
    assert asked(gru) == [Problem("fused_step", False, 1, 33, 33, 3)]  # a matrix for each gate


@interpreted
def test_every_unitary_layer_has_an_example_and_no_kernel_is_launched():
    """A layer that is not known would be tuned for its step alone."""
    kinds = [getattr(projunn.nn, name) for name in projunn.nn.__all__]
    arguments = {
        "UnitaryLinear": (8, 8), "BlockUnitaryLinear": (2, 4), "UnitaryRNN": (3, 8),
        "UnitaryRNNCell": (3, 8), "UnitaryConv1d": (2, 2, 6), "UnitaryConv2d": (2, 2, 6),
        "UnitaryConv3d": (2, 2, 4), "UnitaryConvTranspose1d": (2, 2, 6),
        "UnitaryConvTranspose2d": (2, 2, 6), "UnitaryConvTranspose3d": (2, 2, 4),
    }  # fmt: skip
    # Local convolutions run PyTorch's kernels only.
    names = {kind.__name__ for kind in kinds if isinstance(kind, type)}
    layers = {name for name in names if name.startswith(("Unitary", "Block"))}
    assert layers == set(arguments)
    for name, sizes in arguments.items():
        layer, ran = getattr(projunn.nn, name)(*sizes), []
        before = layer.state_dict()
        before = {key: value.clone() for key, value in before.items()}
        layer.register_forward_hook(lambda *told, ran=ran: ran.append(1))
        asked(layer, batch=2, length=3)
        assert ran == [1]
        for key, value in layer.state_dict().items():
            assert torch.equal(value, before[key]), (name, key)


@interpreted
def test_a_model_of_float64_asks_for_no_kernel():
    with pytest.raises(ValueError, match=r"no kernel runs for its unitary parameters \(float64\)"):
        asked(projunn.nn.UnitaryLinear(8, 8, dtype=torch.float64))


@interpreted
def test_a_layer_that_needs_another_input_is_named():
    class Odd(projunn.nn.UnitaryLinear):
        def forward(self, input, mask):
            return super().forward(input)

    with pytest.raises(ValueError, match=r"model: Odd does not run on an input \(128, 8\): TypeError"):
        asked(Odd(8, 8))


MODULE = """
    import torch
    import projunn

    not_a_function = 3
    ready = projunn.nn.UnitaryLinear(4, 4)


    class Holder:
        make = staticmethod(lambda: projunn.nn.UnitaryLinear(5, 5))


    def make():
        return projunn.nn.UnitaryLinear(6, 6)


    def with_optimizer():
        model = make()
        return model, projunn.optim.AdamW(model.parameters(), rank=2)


    def with_torchs_optimizer():
        model = make()
        return model, torch.optim.Adam(model.parameters())


    def plain():
        return torch.nn.Linear(3, 3)


    def nothing():
        pass


    def broken():
        raise KeyError("lost")


    def leaves():
        raise SystemExit(3)


    def needs(size):
        pass
    """


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a module in it."""
    (tmp_path / "tuned_model.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "half_written.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("tuned_model", None)


def test_a_function_of_the_current_folder_is_called(folder):
    for name, size in (("make", 6), ("Holder.make", 5), ("ready", 4)):
        model, optimizer = load_model(f"tuned_model:{name}")
        assert (model.in_features, optimizer) == (size, None)
    model, optimizer = load_model("tuned_model:with_optimizer")
    assert optimizer.param_groups[0]["rank"] == 2
    assert optimizer.param_groups[0]["params"][0] is model.weight


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tuned_model", "got 'tuned_model', wanted module:function"),
        (":make", "wanted module:function"),
        ("tuned_model.py:make", "wanted module:function"),
        ("missing_module:make", "cannot import 'missing_module': ModuleNotFoundError: No module"),
        ("half_written:make", "cannot import 'half_written': ModuleNotFoundError: .*nowhere"),
        ("tuned_model:makes", "module 'tuned_model' has no 'makes'"),
        ("tuned_model:not_a_function", "is int, wanted a function or a module"),
        ("tuned_model:needs", "cannot be called: TypeError"),
        ("tuned_model:broken", "cannot be called: KeyError: 'lost'"),
        ("tuned_model:leaves", "cannot be called: SystemExit: 3"),
        (
            "tuned_model:nothing",
            r"returned NoneType, wanted a torch.nn.Module, or \(module, optimizer\)",
        ),
        ("tuned_model:plain", "Linear of 'tuned_model:plain' has no unitary parameters"),
        ("tuned_model:with_torchs_optimizer", "is a torch.optim.adam.Adam, wanted one of projunn.optim"),
    ],
)
def test_what_is_no_model_is_refused_in_words(folder, name, words):
    with pytest.raises(ValueError, match=f"model: .*{words}"):
        load_model(name)
