"""The time loop against the blackboard loop and autograd's own gradients."""

import importlib.util
from dataclasses import replace

import pytest
import torch

import projunn
from projunn_kernels import NONLINEARITIES, RecurrenceBackward, recurrence, recurrence_backward
from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs.problem import Config
from projunn_kernels.time_loop.eager import _Workspace
from projunn_kernels.time_loop.reference import recurrence as recurrence_reference

# Without tracing: the interpreter reads the storage that fake tensors lack (DESIGN 6).
INTERPRETED = ("test_schema", "test_autograd_registration", "test_faketensor")
OPERATOR = torch.ops.projunn.recurrence.default
CASES = [(f, c) for f in NONLINEARITIES for c in (False, True) if not (f == "relu" and c)]


def draw(complex_, nonlinearity, steps=6, batch=3, n=5, dtype=torch.float64):
    pair = (2,) if complex_ else ()
    shapes = ((steps, batch, n), (batch, n), (n, n))
    tensors = [torch.randn(*s, *pair, dtype=dtype, requires_grad=True) for s in shapes]
    bias = None
    if nonlinearity == "modrelu":
        bias = (0.3 * torch.randn(n, dtype=dtype)).requires_grad_()
    return (*tensors, bias)


def numbers(tensor, complex_):
    return torch.view_as_complex(tensor) if complex_ else tensor


def reference(tensors, complex_, nonlinearity):
    *stored, bias = tensors
    result = recurrence_reference(*(numbers(t, complex_) for t in stored), bias, nonlinearity)
    return torch.view_as_real(result) if complex_ else result


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize("steps", [1, 6])
def test_states_and_gradients(nonlinearity, complex_, steps):
    tensors = draw(complex_, nonlinearity, steps)
    expected = reference(tensors, complex_, nonlinearity)
    result, _ = recurrence(*tensors, nonlinearity)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=1e-12)
    wanted = [t for t in tensors if t is not None]
    cotangent = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(result, wanted, cotangent),
        torch.autograd.grad(expected, wanted, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
def test_opcheck(nonlinearity, complex_):
    torch.library.opcheck(OPERATOR, (*draw(complex_, nonlinearity, 3), nonlinearity, None, None))
    tensors, *projection = draw_projected(complex_, nonlinearity, 3)
    torch.library.opcheck(OPERATOR, (*tensors, nonlinearity, *projection))


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
def test_strided_input_and_cotangent(nonlinearity, complex_):
    x, h, w, b = draw(complex_, nonlinearity)
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    result, _ = recurrence(strided, h, w, b, nonlinearity)
    torch.testing.assert_close(result, recurrence(x, h, w, b, nonlinearity)[0])
    (gradient,) = torch.autograd.grad(result.sum(), strided)
    (expected,) = torch.autograd.grad(recurrence(x, h, w, b, nonlinearity)[0].sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("complex_", [False, True])
def test_modrelu_at_zero_and_below_threshold(complex_):
    x, h, w, _ = draw(complex_, "identity", steps=1)
    with torch.no_grad():
        x.zero_()
        h.zero_()
    for size in (-1e3, 0.5):  # everything off; everything on, but z = 0 has no phase
        bias = torch.full((5,), size, dtype=torch.float64, requires_grad=True)
        result, _ = recurrence(x, h, w, bias, "modrelu")
        assert torch.count_nonzero(result) == 0
        gradients = torch.autograd.grad(result.sum(), (x, bias))
        assert all(g.isfinite().all() for g in gradients)


def draw_projected(complex_, nonlinearity, steps=6, batch=3, n=5, m=2, dtype=torch.float64):
    """As `draw`, with inputs to be projected, U and c."""
    _, *rest = draw(complex_, nonlinearity, steps, batch, n, dtype)
    shapes = (steps, batch, m), (n * (1 + complex_), m), (n * (1 + complex_),)
    u, *projection = (torch.randn(s, dtype=dtype) for s in shapes)
    for tensor in projection:  # tanh has its poles at i pi / 2
        tensor.mul_(0.2)
    u, *projection = (t.requires_grad_() for t in (u, *projection))
    return [u, *rest], *projection


def project(tensors, complex_, input_weight, input_bias):
    """What the inputs stand for."""
    u, h, w, b = tensors
    x = torch.nn.functional.linear(u, input_weight, input_bias)
    return x.unflatten(-1, (-1, 2)) if complex_ else x, h, w, b


BACKENDS = ["torch", "interpret"] if importlib.util.find_spec("triton") is not None else ["torch"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [5, 67])  # 67 is padded to full vectors
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
def test_projected_inputs_and_the_last_state(backend, n, with_bias, nonlinearity, complex_):
    """Of fewer rows than a panel, of some panels and a part, and of more rows than one."""
    exact = backend == "torch"
    dtype, tolerance = (torch.float64, 1e-8) if exact else (torch.float32, 5e-4)
    for batch, steps in ((3, 1), (200, 5), (513, 2)) if exact else ((3, 1), (5, 3)):
        tensors, input_weight, input_bias = draw_projected(
            complex_, nonlinearity, steps, batch, n, 2, dtype
        )
        tensors = small_weight(tensors)
        input_bias = input_bias if with_bias else None
        with projunn.backend(backend):
            ours = recurrence(*tensors, nonlinearity, input_weight, input_bias)
        states = reference(project(tensors, complex_, input_weight, input_bias), complex_, nonlinearity)
        theirs = states, states[-1]
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
        wanted = [t for t in (*tensors, input_weight, input_bias) if t is not None]
        cotangent = torch.randn_like(states)
        for of_all, of_last in ((1, 0), (0, 1), (1, 1)):
            gradients = []
            for all_, last in (ours, theirs):
                terms = [(all_ * cotangent).sum()] * of_all + [last.square().sum()] * of_last
                with projunn.backend(backend):
                    gradients.append(torch.autograd.grad(sum(terms), wanted, retain_graph=True))
            for own, other in zip(*gradients, strict=True):
                assert (own - other).abs().max() <= tolerance * (1 + other.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("nonlinearity", "complex_"), [("tanh", False), ("modrelu", True)])
def test_factors_in_place_of_the_weight_gradient(backend, projected, k, nonlinearity, complex_):
    """Those of the sketch of all time steps' rows."""
    tensors, *projection = draw_projected(complex_, nonlinearity, 4, 9, 6, 2, torch.float32)
    if not projected:
        tensors, projection = [*project(tensors, complex_, *projection)], [None, None]
    tensors = [None if t is None else t.detach() for t in small_weight(tensors)]
    input_weight, input_bias = (None if t is None else t.detach() for t in projection)
    basis = torch.randn(6, k, *(2,) * complex_)
    with projunn.backend(backend):
        states, _ = recurrence(*tensors, nonlinearity, input_weight, input_bias)
        above = torch.randn_like(states)
        arguments = above, None, tensors[0], states, *tensors[1:], nonlinearity, input_weight
        call = RecurrenceBackward(*arguments)
        _, _, _, for_input_weight, _, left, right = recurrence_backward(replace(call, basis=basis))
        *_, dense_input_weight, _, dense = recurrence_backward(call)
        *_, shift = recurrence_backward(replace(call, wants_inputs=False, wants_weight=False))
    dense, left, right = (numbers(t, complex_) for t in (dense, left, right))
    right_of = torch.linalg.qr(dense.mH @ numbers(basis, complex_))[0]
    torch.testing.assert_close(left @ right.mH, dense @ right_of @ right_of.mH, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(for_input_weight, dense_input_weight)
    assert shift.shape == ((6 * (1 + complex_),) if projected else (0,))


def test_memory_kept_from_step_to_step_changes_nothing(monkeypatch):
    """Smaller and larger ones after one another, and of another dtype."""

    def factors(batch, dtype):
        torch.manual_seed(batch)
        tensors, input_weight, _ = draw_projected(False, "tanh", 4, batch, 6, 2, dtype)
        u, h, w, b = (None if t is None else t.detach() for t in small_weight(tensors))
        states, _ = recurrence(u, h, w, b, "tanh", input_weight.detach())
        above = torch.ones_like(states)
        basis = torch.ones(6, 1, dtype=dtype)
        arguments = above, None, u, states, h, w, b, "tanh", input_weight.detach()
        return recurrence_backward(RecurrenceBackward(*arguments, basis=basis))

    cases = [(3, torch.float32), (9, torch.float32), (2, torch.float64), (9, torch.float32)]
    kept = [factors(*case) for case in cases]
    monkeypatch.setattr(_Workspace, "most", 0)
    for own, case in zip(kept, cases, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own, factors(*case), strict=True))


def test_error_in_single_precision():
    tensors = draw(False, "tanh", steps=50, dtype=torch.float32)
    exact = reference([None if t is None else t.detach().double() for t in tensors], False, "tanh")
    ours = (recurrence(*tensors, "tanh")[0] - exact).abs().max()
    theirs = (reference(tensors, False, "tanh") - exact).abs().max()
    assert ours <= 4 * theirs + 1e-6


# -- the Triton kernels, in the interpreter ----------------------------------------------------------

triton_installed = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not triton_installed, reason="triton is not installed")


def pieces(tensors, complex_, nonlinearity, cotangent, run, dtype=None):
    """Output and gradients of everything, of ``run`` on tensors of a dtype."""
    own = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    result = run(own, complex_, nonlinearity)
    wanted = [t for t in own if t is not None]
    return [result.detach(), *torch.autograd.grad(result, wanted, cotangent.to(result.dtype))]


def kernel(tensors, complex_, nonlinearity):
    return recurrence(*tensors, nonlinearity)[0]


def small_weight(tensors):
    """States of size 1, whose errors do not grow over time."""
    x, h, w, b = tensors
    scale = (2 * w.shape[0] * (w.ndim - 1)) ** 0.5
    return x, h, (w.detach() / scale).requires_grad_(), b


def check(tensors, complex_, nonlinearity, factor=8, floor=1e-6):
    """Error against float64 at most ``factor`` times PyTorch's in the same dtype (2.9 was seen)."""
    cotangent = torch.randn_like(tensors[0].detach())
    arguments = (tensors, complex_, nonlinearity, cotangent)
    exact = pieces(*arguments, reference, torch.float64)
    plain = pieces(*arguments, reference)
    with projunn.backend("interpret"):
        ours = pieces(*arguments, kernel)
    for own, theirs, precise in zip(ours, plain, exact, strict=True):
        assert own.shape == precise.shape
        allowed = factor * (theirs - precise).abs().max() + floor * precise.abs().max()
        assert (own - precise).abs().max() <= allowed


# n up to 32 is held in registers, more passes in panels.
@needs_triton
@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize(
    ("steps", "batch", "n"),
    [(1, 1, 1), (1, 5, 16), (3, 17, 5), (4, 5, 33), (2, 1, 64), (3, 5, 130)],
)
def test_kernels_equal_float64(nonlinearity, complex_, steps, batch, n):
    check(
        small_weight(draw(complex_, nonlinearity, steps, batch, n, torch.float32)),
        complex_,
        nonlinearity,
    )


@needs_triton
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        Config(16, 16, 4, depth=16),
        Config(16, 32, 4, depth=16),
        Config(32, 16, 4, depth=32, stages=3),
        Config(16, 64, 4, hold=True),
    ],
    ids=str,
)
def test_every_tiling_gives_the_same(complex_, config):
    tensors = small_weight(draw(complex_, "modrelu", 4, 19, 37, torch.float32))
    with tuning.using(dict.fromkeys(("recurrence", "recurrence_backward"), config)):
        check(tensors, complex_, "modrelu")


@needs_triton
@pytest.mark.parametrize("nonlinearity", ["tanh", "identity"])  # no jumps in the gradient
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision(nonlinearity, kind):
    tensors = small_weight(draw(False, nonlinearity, 3, 5, 70, kind))
    check(tensors, False, nonlinearity, floor=float(torch.finfo(kind).eps))


@needs_triton
def test_kernels_on_strided_tensors():
    tensors = small_weight(draw(False, "tanh", 3, 5, 20, torch.float32))
    x, h, w, _ = (None if t is None else t.detach() for t in tensors)
    strided = (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        h[:1].expand(5, 20),
        w.mT.contiguous().mT,
        None,
    )
    dense = (x, h[:1].repeat(5, 1), w, None)
    cotangent = torch.randn(3, 5, 20)
    with projunn.backend("interpret"):
        ours = pieces(strided, False, "tanh", cotangent, lambda t, *_: recurrence(*t, "tanh")[0])
        wanted = pieces(dense, False, "tanh", cotangent, lambda t, *_: recurrence(*t, "tanh")[0])
        expanded = recurrence(*dense, "tanh")[0].requires_grad_()
    for own, other in zip(ours, wanted, strict=True):
        assert torch.equal(own, other)
    assert expanded.shape == (3, 5, 20)


@needs_triton
@pytest.mark.parametrize("complex_", [False, True])
def test_kernels_of_modrelu_at_zero_and_below_threshold(complex_):
    x, h, w, _ = draw(complex_, "identity", 2, 3, 5, torch.float32)
    with torch.no_grad():
        x.zero_()
        h.zero_()
    for size in (-1e3, 0.5):
        bias = torch.full((5,), size, requires_grad=True)
        with projunn.backend("interpret"):
            result, _ = recurrence(x, h, w, bias, "modrelu")
            gradients = torch.autograd.grad(result.sum(), (x, bias))
        assert torch.count_nonzero(result) == 0
        assert all(torch.count_nonzero(g) == 0 for g in gradients)


@needs_triton
@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
def test_what_is_not_finite_shows(nonlinearity, complex_):
    tensors = [t.detach() if t is not None else t for t in draw(complex_, nonlinearity, 3, 3, 5)]
    x, *rest = (None if t is None else t.float() for t in tensors)
    x[1, 2] = torch.nan
    with projunn.backend("interpret"):
        result, _ = recurrence(x, *rest, nonlinearity)
    assert result[1:, 2].isnan().any(-1).all()
    assert result[:, :2].isfinite().all()


@needs_triton
def test_large_arguments_of_complex_tanh():
    x = torch.tensor([50.0, 1.0, -90.0, 0.3, 1e-4, 1e-5]).reshape(1, 1, 3, 2)
    zero = torch.zeros(1, 3, 2)
    with projunn.backend("interpret"):
        result, _ = recurrence(x, zero, torch.zeros(3, 3, 2), None, "tanh")
    expected = torch.view_as_complex(x.double()).tanh()
    torch.testing.assert_close(torch.view_as_complex(result.double()), expected, atol=1e-12, rtol=3e-7)


@needs_triton
def test_opcheck_of_the_kernels():
    with projunn.backend("interpret"):
        tensors = draw(True, "modrelu", 2, 3, 5, torch.float32)
        torch.library.opcheck(OPERATOR, (*tensors, "modrelu", None, None), test_utils=INTERPRETED)


def test_empty_batch():
    x, h, w, _ = draw(False, "relu", 2, 0, 5, torch.float32)
    for backend in ("torch", "interpret") if triton_installed else ("torch",):
        with projunn.backend(backend):
            result, _ = recurrence(x, h, w, None, "relu")
            gradients = torch.autograd.grad(result.sum(), (x, h, w))
        assert result.shape == (2, 0, 5)
        assert torch.count_nonzero(gradients[2]) == 0


@pytest.mark.requires_cuda
@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize("n", [33, 190])
def test_on_a_gpu(nonlinearity, complex_, n):
    tensors = small_weight(draw(complex_, nonlinearity, 50, 19, n, torch.float32))
    cotangent = torch.randn_like(tensors[0].detach())
    exact = pieces(tensors, complex_, nonlinearity, cotangent, reference, torch.float64)
    on_gpu = [None if t is None else t.detach().cuda().requires_grad_() for t in tensors]
    ours = pieces(on_gpu, complex_, nonlinearity, cotangent.cuda(), kernel)
    for own, precise in zip(ours, exact, strict=True):
        error = (own.cpu() - precise).abs().max()
        assert error <= 2e-5 * precise.abs().max() + 1e-6
