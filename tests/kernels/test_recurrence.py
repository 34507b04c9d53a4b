"""The time loop against the blackboard loop and autograd's own gradients."""

from dataclasses import replace

import pytest
import torch

import projunn
from projunn_kernels import RecurrenceBackward, recurrence, recurrence_backward
from projunn_kernels.time_loop.eager import _Workspace
from tests.time_loops import CASES, check, draw, kernel, moved, numbers, pieces, reference, small_weight

# Without tracing: the interpreter reads the storage that fake tensors lack (DESIGN 6).
UNTRACED = ("test_schema", "test_autograd_registration", "test_faketensor")
OPERATOR = torch.ops.projunn.recurrence.default


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
    for tensor in projection:  # away from the poles, too
        tensor.mul_(0.05 if complex_ and nonlinearity == "tanh" else 0.2)
    u, *projection = (t.requires_grad_() for t in (u, *projection))
    return [u, *rest], *projection


def project(tensors, complex_, input_weight, input_bias):
    """What the inputs stand for."""
    u, h, w, b = tensors
    x = torch.nn.functional.linear(u, input_weight, input_bias)
    return x.unflatten(-1, (-1, 2)) if complex_ else x, h, w, b


@pytest.fixture(params=["torch", pytest.param("kernels", marks=pytest.mark.kernels)])
def path(request):
    """The backend and the device of the PyTorch path, and of the kernels."""
    if request.param == "torch":
        return "torch", "cpu"
    kernels = request.getfixturevalue("kernels")
    return kernels.name, kernels.device


@pytest.mark.parametrize("n", [5, 67])  # 67 is padded to full vectors
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
def test_projected_inputs_and_the_last_state(path, n, with_bias, nonlinearity, complex_):
    """Of fewer rows than a panel, of some panels and a part, and of more rows than one."""
    backend, device = path
    exact = backend == "torch"
    dtype, tolerance = (torch.float64, 1e-8) if exact else (torch.float32, 5e-4)
    for batch, steps in ((3, 1), (200, 5), (513, 2)) if exact else ((3, 1), (5, 3)):
        tensors, input_weight, input_bias = draw_projected(
            complex_, nonlinearity, steps, batch, n, 2, dtype
        )
        input_bias = input_bias if with_bias else None
        theirs = [*small_weight(tensors), input_weight, input_bias]
        states = reference(project(theirs[:4], complex_, *theirs[4:]), complex_, nonlinearity)
        cotangent = torch.randn_like(states)
        ours = moved(theirs, device)
        with projunn.backend(backend):
            results = recurrence(*ours[:4], nonlinearity, *ours[4:])
        for own, other in zip(results, (states, states[-1]), strict=True):
            torch.testing.assert_close(own.cpu(), other, atol=tolerance, rtol=tolerance)

        def gradients(tensors, states, last, of_all, of_last, cotangent=cotangent):
            along = cotangent.to(states.device)
            terms = [(states * along).sum()] * of_all + [last.square().sum()] * of_last
            wanted = [t for t in tensors if t is not None]
            return torch.autograd.grad(sum(terms), wanted, retain_graph=True)

        for losses in ((1, 0), (0, 1), (1, 1)):
            with projunn.backend(backend):
                found = gradients(ours, *results, *losses)
            expected = gradients(theirs, states, states[-1], *losses)
            for own, other in zip(found, expected, strict=True):
                assert (own.cpu() - other).abs().max() <= tolerance * (1 + other.abs().max())


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("nonlinearity", "complex_"), [("tanh", False), ("modrelu", True)])
def test_factors_in_place_of_the_weight_gradient(path, projected, k, nonlinearity, complex_):
    """Those of the sketch of all time steps' rows."""
    backend, device = path
    tensors, *projection = draw_projected(complex_, nonlinearity, 4, 9, 6, 2, torch.float32)
    if not projected:
        tensors, projection = [*project(tensors, complex_, *projection)], [None, None]
    detached = [None if t is None else t.detach() for t in (*small_weight(tensors), *projection)]
    *tensors, input_weight, input_bias = moved(detached, device)
    basis = torch.randn(6, k, *(2,) * complex_).to(device)
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


# -- the Triton kernels ------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["tanh", "identity"])  # no jumps in the gradient
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision(kernels, nonlinearity, kind):
    tensors = small_weight(draw(False, nonlinearity, 3, 5, 70, kind))
    check(kernels, tensors, False, nonlinearity, floor=float(torch.finfo(kind).eps))


def test_kernels_on_strided_tensors(kernels):
    tensors = small_weight(draw(False, "tanh", 3, 5, 20, torch.float32))
    x, h, w, _ = (None if t is None else t.detach().to(kernels.device) for t in tensors)
    strided = (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        h[:1].expand(5, 20),
        w.mT.contiguous().mT,
        None,
    )
    dense = (x, h[:1].repeat(5, 1), w, None)
    cotangent = torch.randn(3, 5, 20).to(kernels.device)
    with kernels.backend():
        ours = pieces(strided, False, "tanh", cotangent, lambda t, *_: recurrence(*t, "tanh")[0])
        wanted = pieces(dense, False, "tanh", cotangent, lambda t, *_: recurrence(*t, "tanh")[0])
        expanded = recurrence(*dense, "tanh")[0].requires_grad_()
    for own, other in zip(ours, wanted, strict=True):
        assert torch.equal(own, other)
    assert expanded.shape == (3, 5, 20)


@pytest.mark.parametrize("complex_", [False, True])
def test_kernels_of_modrelu_at_zero_and_below_threshold(kernels, complex_):
    x, h, w, _ = moved(draw(complex_, "identity", 2, 3, 5, torch.float32), kernels.device)
    with torch.no_grad():
        x.zero_()
        h.zero_()
    for size in (-1e3, 0.5):
        bias = torch.full((5,), size, device=kernels.device, requires_grad=True)
        with kernels.backend():
            result, _ = recurrence(x, h, w, bias, "modrelu")
            gradients = torch.autograd.grad(result.sum(), (x, bias))
        assert torch.count_nonzero(result) == 0
        assert all(torch.count_nonzero(g) == 0 for g in gradients)


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
def test_what_is_not_finite_shows(kernels, nonlinearity, complex_):
    tensors = draw(complex_, nonlinearity, 3, 3, 5, torch.float32)
    x, *rest = (None if t is None else t.detach().to(kernels.device) for t in tensors)
    x[1, 2] = torch.nan
    with kernels.backend():
        result, _ = recurrence(x, *rest, nonlinearity)
    assert result[1:, 2].isnan().any(-1).all()
    assert result[:, :2].isfinite().all()


def test_large_arguments_of_complex_tanh(kernels):
    x = torch.tensor([50.0, 1.0, -90.0, 0.3, 1e-4, 1e-5]).reshape(1, 1, 3, 2)
    zero, weight = torch.zeros(1, 3, 2), torch.zeros(3, 3, 2)
    with kernels.backend():
        result, _ = recurrence(*moved((x, zero, weight), kernels.device), None, "tanh")
    result, expected = (torch.view_as_complex(t) for t in (result.cpu().double(), x.double()))
    torch.testing.assert_close(result, expected.tanh(), atol=1e-12, rtol=1e-6)  # exp on a GPU: 2 ulp


def test_opcheck_of_the_kernels(kernels):
    with kernels.backend():
        tensors = moved(draw(True, "modrelu", 2, 3, 5, torch.float32), kernels.device)
        torch.library.opcheck(OPERATOR, (*tensors, "modrelu", None, None), test_utils=UNTRACED)


def test_empty_batch(path):
    backend, device = path
    x, h, w, _ = moved(draw(False, "relu", 2, 0, 5, torch.float32), device)
    with projunn.backend(backend):
        result, _ = recurrence(x, h, w, None, "relu")
        gradients = torch.autograd.grad(result.sum(), (x, h, w))
    assert result.shape == (2, 0, 5)
    assert torch.count_nonzero(gradients[2]) == 0


@pytest.mark.requires_cuda
@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize("n", [33, 190])
def test_fifty_steps_on_a_gpu(kernels, nonlinearity, complex_, n):
    tensors = small_weight(draw(complex_, nonlinearity, 50, 19, n, torch.float32))
    cotangent = torch.randn_like(tensors[0].detach())
    exact = pieces(tensors, complex_, nonlinearity, cotangent, reference, torch.float64)
    on_gpu = moved(tensors, kernels.device)
    with kernels.backend():
        ours = pieces(on_gpu, complex_, nonlinearity, cotangent.to(kernels.device), kernel)
    for own, precise in zip(ours, exact, strict=True):
        error = (own.cpu() - precise).abs().max()
        assert error <= 2e-5 * precise.abs().max() + 1e-6
