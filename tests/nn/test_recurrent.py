"""Recurrent layers against loops of their cell; `test_sequences` compares them with torch's own."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from projunn import init
from projunn.nn import UnitaryRNN, UnitaryRNNCell
from tests.dense import defect

COMPLEX = (torch.complex64, torch.complex128)


@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh", "identity"])
def test_equals_a_loop_of_its_cell(dtype, nonlinearity):
    rnn = UnitaryRNN(3, 4, nonlinearity=nonlinearity, dtype=dtype)
    cell = UnitaryRNNCell(3, 4, nonlinearity=nonlinearity, dtype=dtype)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in rnn.state_dict().items()})
    # States this small stay away from the poles of the complex tanh, near which rounding decides.
    x, h = 0.1 * torch.randn(6, 2, 3, dtype=dtype), 0.1 * torch.randn(2, 4, dtype=dtype)
    output, last = rnn(x, h.unsqueeze(0))
    for step in range(6):
        h = cell(x[step], h)
        torch.testing.assert_close(h, output[step])
    torch.testing.assert_close(last[0], h)
    torch.testing.assert_close(cell(x[0, 0], h[0]), cell(x[0], h)[0])
    torch.testing.assert_close(cell(x[0]), cell(x[0], torch.zeros(2, 4, dtype=dtype)))
    h.abs().square().sum().backward()
    last.abs().square().sum().backward()
    for name, parameter in cell.named_parameters():
        torch.testing.assert_close(parameter.grad, getattr(rnn, f"{name}_l0").grad)


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_sequence_of_one_time_step_is_the_formula(kind, bidirectional):
    """In PyTorch's operations, whose numbers and gradients are those of the time loop's operator."""
    rnn = UnitaryRNN(3, 4, 2, nonlinearity="tanh", dtype=kind, bidirectional=bidirectional)
    x = 0.1 * torch.randn(1, 2, 3, dtype=kind)
    h = 0.1 * torch.randn(2 + 2 * bidirectional, 2, 4, dtype=kind)
    resets = torch.tensor([[True, False]])
    h.requires_grad_()
    found = []
    for operator in (False, True):
        with watched_operators() as names:
            given = nn.utils.rnn.pack_sequence(list(x.unbind(1))) if operator else x
            cuts = nn.utils.rnn.pack_sequence(list(resets.unbind(1))) if operator else resets
            output, last = rnn(given, h, resets=cuts)
        assert ("projunn.recurrence.default" in names) == operator
        output = output.data.unsqueeze(0) if operator else output
        by = torch.autograd.grad(output.abs().sum() + last.abs().sum(), [h, *rnn.parameters()])
        found.append([output, last, *by])
    torch.testing.assert_close(*found)
    output, last = rnn(x, h)
    kept = last.clone()
    with torch.no_grad():
        output.zero_()
    assert last.equal(kept)


class watched_operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __enter__(self):
        super().__enter__()
        self.names = set()
        return self.names

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.add(str(function))
        return function(*arguments, **(options or {}))


def test_a_traced_time_step_takes_more_of_them():
    rnn = UnitaryRNN(3, 4)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(torch.jit.trace(rnn, (x[:1],))(x), rnn(x))
    torch.testing.assert_close(make_fx(rnn)(x[:1])(x), rnn(x))


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
def test_one_time_step_without_hx_gives_every_parameter_a_gradient(kind):
    """DistributedDataParallel waits for it."""
    for module in (UnitaryRNN(3, 4, dtype=kind), UnitaryRNNCell(3, 4, dtype=kind)):
        x = torch.randn(1, 2, 3, dtype=kind)
        output = module(x)[0] if isinstance(module, UnitaryRNN) else module(x[0])
        output.abs().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            assert "weight_hh" not in name or not parameter.grad.any()


def test_one_time_step_refuses_hx_of_another_device_with_resets():
    with pytest.raises(ValueError, match="hx: is on meta, wanted the layer's device cpu"):
        UnitaryRNN(3, 4)(
            torch.randn(1, 2, 3),
            torch.empty(1, 2, 4, device="meta"),
            resets=torch.zeros(1, 2, dtype=torch.bool),
        )


def test_the_output_of_one_time_step_is_no_view():
    with torch.no_grad():
        output, _ = UnitaryRNN(3, 4)(torch.randn(1, 2, 3))
    output.mul_(torch.ones((), requires_grad=True))
    assert output.requires_grad


@pytest.mark.parametrize("kind", COMPLEX)
def test_complex_layer_takes_real_input(kind):
    rnn = UnitaryRNN(3, 4, dtype=kind)
    x = torch.randn(5, 2, 3, dtype=kind.to_real())
    torch.testing.assert_close(rnn(x)[0], rnn(x.to(kind))[0])
    assert rnn(x)[0].dtype == rnn(x)[1].dtype == kind


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_gradients_through_the_layer(kind):
    rnn = UnitaryRNN(2, 3, num_layers=2, dtype=kind)
    x = torch.randn(4, 2, 2, dtype=kind, requires_grad=True)
    h = torch.randn(2, 2, 3, dtype=kind, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, h: rnn(x, h)[0], (x, h))
    names = [name for name, _ in rnn.named_parameters()]

    def of_parameters(*values):
        return torch.func.functional_call(rnn, dict(zip(names, values, strict=True)), (x.detach(),))[0]

    assert torch.autograd.gradcheck(of_parameters, tuple(rnn.parameters()))


@pytest.mark.parametrize("kind", [UnitaryRNN, UnitaryRNNCell])
def test_a_layer_without_numbers_tells_the_shape_of_its_output(kind):
    layer, x = kind(3, 4, device="meta"), torch.empty(5, 2, 3, device="meta")
    output = layer(x)[0] if kind is UnitaryRNN else layer(x[0])
    assert output.is_meta
    assert output.shape == (5, 2, 4)[-output.ndim :]
    with pytest.raises(TypeError, match=r"input: got torch\.bfloat16"):
        layer(x[0].bfloat16())


def test_gradient_norm_survives_five_hundred_steps():
    rnn = UnitaryRNN(1, 32, nonlinearity="identity")
    init.haar_(rnn.weight_hh_l0)
    h = torch.randn(1, 3, 32, requires_grad=True)
    cotangent = torch.randn(3, 32)
    (gradient,) = torch.autograd.grad(rnn(torch.zeros(500, 3, 1), h)[1][0], h, cotangent)
    sizes = torch.linalg.vector_norm(gradient[0], dim=-1)
    torch.testing.assert_close(sizes, torch.linalg.vector_norm(cotangent, dim=-1), rtol=1e-4, atol=0)


def test_dropout_acts_between_layers_in_training_only():
    rnn = UnitaryRNN(2, 8, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, 2)
    assert not torch.equal(rnn(x)[0], rnn(x)[0])
    rnn.eval()
    assert torch.equal(rnn(x)[0], rnn(x)[0])
    complex_ = UnitaryRNN(2, 8, num_layers=2, dropout=1.0, bias=False, dtype=torch.complex64)
    assert torch.count_nonzero(complex_(x)[0]) == 0


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
def test_compiles_as_one_graph(kind):
    rnn = UnitaryRNN(3, 4, dtype=kind)
    x = torch.randn(50, 2, 3, requires_grad=True)
    compiled = torch.compile(
        lambda x: torch.view_as_real(rnn(x)[0] + 0j), fullgraph=True, backend="aot_eager"
    )
    (expected,) = torch.autograd.grad(torch.view_as_real(rnn(x)[0] + 0j).square().sum(), x)
    result = compiled(x)
    torch.testing.assert_close(result, torch.view_as_real(rnn(x)[0] + 0j))
    (gradient,) = torch.autograd.grad(result.square().sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("kind", "of_input"),
    [
        (torch.float32, torch.float32),
        (torch.complex64, torch.float32),
        (torch.complex64, torch.complex64),
    ],
)
def test_runs_under_autocast(kind, of_input):
    rnn = UnitaryRNN(3, 4, nonlinearity="modrelu", dtype=kind)
    x = torch.randn(5, 2, 3, dtype=of_input)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = rnn(x)
    assert output.dtype == kind
    torch.testing.assert_close(output, rnn(x)[0], atol=0.1, rtol=0.1)
    output.abs().sum().backward()
    assert rnn.weight_hh_l0.grad.dtype == torch.float32


def test_parameters_and_repr():
    rnn = UnitaryRNN(3, 4, num_layers=2, batch_first=True, dtype=torch.complex64)
    names = {name for name, _ in rnn.named_parameters()}
    assert names == {
        f"{kind}_l{i}" for kind in ("weight_ih", "weight_hh", "bias_ih", "modrelu_bias") for i in (0, 1)
    }
    assert rnn.weight_ih_l1.shape == (4, 4, 2)
    assert defect(torch.view_as_complex(rnn.weight_hh_l1.detach())) < 1e-6
    assert repr(rnn) == (
        "UnitaryRNN(3, 4, nonlinearity='modrelu', bias=True, complex, num_layers=2, batch_first=True)"
    )
    assert "bias_ih_l0" not in dict(UnitaryRNN(3, 4, bias=False).named_parameters())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: UnitaryRNN(3, 4, nonlinearity="gelu"), ValueError, "nonlinearity: got 'gelu'"),
        (lambda: UnitaryRNN(3, 4, nonlinearity="relu", dtype=torch.complex64), ValueError, "relu"),
        (lambda: UnitaryRNN(3, 0), ValueError, "hidden_size: got 0"),
        (lambda: UnitaryRNN(3, 4, num_layers=0), ValueError, "num_layers: got 0"),
        (lambda: UnitaryRNN(3, 4, dropout=2), ValueError, "dropout: got 2"),
        (lambda: UnitaryRNN(3, 4)(torch.ones(5, 2, 2)), ValueError, r"input: got shape \(5, 2, 2\)"),
        (lambda: UnitaryRNN(3, 4)(torch.ones(0, 2, 3)), ValueError, "at least one time step"),
        (
            lambda: UnitaryRNN(3, 4)(torch.ones(5, 2, 3), torch.ones(1, 3, 4)),
            ValueError,
            r"hx: got shape \(1, 3, 4\), wanted \(1, 2, 4\)",
        ),
        (lambda: UnitaryRNNCell(3, 4)(torch.ones(2, 2)), ValueError, r"input: got shape \(2, 2\)"),
        (lambda: UnitaryRNNCell(3, 4)(torch.ones(2, 3), torch.ones(4)), ValueError, "hx: got"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.requires_cpp
def test_a_thousand_steps_compile_as_few_do():
    """One operator is the loop: the graph, and so the time to compile it, does not grow with T."""
    rnn = UnitaryRNN(2, 6, nonlinearity="relu")
    graphs = []

    def note(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    x = torch.randn(1000, 2, 2)
    backend = aot_autograd(fw_compiler=note, bw_compiler=note)
    torch.compile(rnn, fullgraph=True, backend=backend)(x[:50])[0].sum().backward()
    for graph, name in zip(graphs, ("recurrence", "recurrence_backward"), strict=True):
        targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        assert targets.count(getattr(torch.ops.projunn, name).default) == 1
        assert len(graph.graph.nodes) < 40

    rnn.zero_grad()
    compiled = torch.compile(rnn, fullgraph=True)
    output, last = compiled(x)
    output.square().mean().backward()
    gradients = [p.grad.clone() for p in rnn.parameters()]
    rnn.zero_grad()
    expected, expected_last = rnn(x)
    expected.square().mean().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(last, expected_last)
    for ours, parameter in zip(gradients, rnn.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)
