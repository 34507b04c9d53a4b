"""The Fourier-domain convolution against its formula and autograd's own gradients."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from projunn_kernels import fourier_convolution, frequencies
from projunn_kernels.convolution import eager, fourier, tables
from projunn_kernels.convolution.reference import fourier_convolution as blackboard

CASES = [((4, 4), True), ((3, 4), True), ((5,), True), ((2, 3, 2), True), ((3, 2), False)]


def draw(size, real, batch=2, m=3, n=2, dtype=torch.float64):
    pair = () if real else (2,)
    grid = frequencies(size, real)

    def parameter(*shape):
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    own = parameter(len(grid.own), m, n) if real else None
    return parameter(batch, n, *size, *pair), parameter(grid.paired, m, n, 2), own, parameter(m, *pair)


def convolve(x, weight, own, bias, size):
    return fourier_convolution(x, weight, own, bias, list(size))[0]


def reference(x, weight, own, bias, size):
    if own is None:
        numbers = (torch.view_as_complex(t) for t in (x, weight, bias))
        x, w, b = numbers
        return torch.view_as_real(blackboard(x, w, None, b, list(size)))
    return blackboard(x, torch.view_as_complex(weight), own, bias, list(size))


@pytest.mark.parametrize(("size", "real"), CASES)
def test_values_and_gradients(size, real):
    tensors = draw(size, real)
    result, expected = convolve(*tensors, size), reference(*tensors, size)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=1e-12)
    wanted = [t for t in tensors if t is not None]
    cotangent = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(result, wanted, cotangent),
        torch.autograd.grad(expected, wanted, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(("size", "real"), CASES)
def test_gradcheck_and_opcheck(size, real):
    tensors = draw(size, real)
    assert torch.autograd.gradcheck(lambda *t: convolve(*t, size), tensors)
    torch.library.opcheck(torch.ops.projunn.fourier_convolution.default, (*tensors, list(size)))


@pytest.mark.parametrize(("size", "real"), CASES)
def test_gradients_of_gradients(size, real):
    tensors = draw(size, real)
    assert torch.autograd.gradgradcheck(lambda *t: convolve(*t, size), tensors)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
def test_gradients_of_some_gradients(needed):
    """A penalty on some gradients, as in WGAN-GP, against autograd through the formula."""
    size = (4, 6)
    results = []
    for function in (convolve, reference):
        torch.manual_seed(1)
        tensors = [t.detach().requires_grad_() for t in draw(size, True)]
        y = function(*tensors, size)
        first = torch.autograd.grad(y.sin().sum(), [tensors[i] for i in needed], create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        results.append(torch.autograd.grad(penalty, tensors, allow_unused=True))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("size", "real"), CASES)
def test_third_derivatives(size, real):
    results = []
    for function in (convolve, reference):
        torch.manual_seed(1)
        tensors = draw(size, real)
        wanted = [t for t in tensors if t is not None]
        value = function(*tensors, size).sin().sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, wanted, create_graph=True)
            value = sum(g.sin().sum() for g in gradients)
        results.append(gradients)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_spectrum_has_a_gradient_too():
    x, weight, own, _ = draw((4, 3), True)
    assert torch.autograd.gradcheck(lambda x: fourier_convolution(x, weight, own, None, [4, 3])[1], (x,))


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 3)])
def test_only_the_wanted_gradients_are_made(needed):
    size = (4, 3)
    tensors = [t.detach().requires_grad_(i in needed) for i, t in enumerate(draw(size, True))]
    convolve(*tensors, size).square().sum().backward()
    assert [i for i, t in enumerate(tensors) if t.grad is not None] == list(needed)
    full = [t.detach().requires_grad_() for t in tensors]
    convolve(*full, size).square().sum().backward()
    for i in needed:
        torch.testing.assert_close(tensors[i].grad, full[i].grad)


def test_layouts_and_empty_batches():
    size = (4, 3)
    x, *rest = draw(size, True)
    expected = convolve(x, *rest, size)
    torch.testing.assert_close(convolve(x.to(memory_format=torch.channels_last), *rest, size), expected)
    broadcast = x[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(convolve(broadcast, *rest, size)[2], expected[0])
    strange = torch.randn(3, 4, 3, 2, dtype=x.dtype).permute(3, 0, 1, 2)  # a strided cotangent
    (gradient,) = torch.autograd.grad(convolve(x, *rest, size), x, strange)
    (wanted,) = torch.autograd.grad(convolve(x, *rest, size), x, strange.contiguous())
    torch.testing.assert_close(gradient, wanted)
    assert convolve(x[:0], *rest, size).shape == (0, 3, 4, 3)


def test_error_in_single_precision():
    size = (32, 32)
    tensors = [t.detach() for t in draw(size, True, m=16, n=16, dtype=torch.float32)]
    exact = reference(*(t.double() for t in tensors), size)
    ours = (convolve(*tensors, size) - exact).abs().max()
    theirs = (reference(*tensors, size) - exact).abs().max()
    assert ours <= 4 * theirs + 1e-6


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(4, 4), (24, 3)])  # products, and the FFT
def test_autocast_computes_in_single_precision(half, size):
    """Forward and backward, of input and gradients in half precision as they were rounded."""
    tensors = [t.detach().float() for t in draw(size, True, n=4)]
    tensors[0] = tensors[0].to(half)
    expected = results_of([tensors[0].float(), *tensors[1:]], size)
    with torch.autocast("cpu", half):
        found = results_of(tensors, size)
    assert [t.dtype for t in found] == [torch.float32, half, *[torch.float32] * 3]
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        tolerance = torch.finfo(half).eps if number == 1 else 1e-5
        torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)


def results_of(tensors, size):
    """The output and all gradients."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = convolve(*tensors, size)
    return [y, *torch.autograd.grad(y.square().sum(), tensors)]


@pytest.mark.parametrize(("size", "real"), CASES)
def test_the_input_is_kept_in_place_of_its_spectrum(size, real):
    tensors = draw(size, real)
    wanted = [t for t in tensors if t is not None]
    results, shapes = [], []
    for keep in (True, False):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, id):
            y, *spectrum = fourier_convolution(*tensors, list(size), keep)
        shapes.append([t.shape for t in kept if t.shape == tensors[0].shape])
        assert all(bool(s.numel()) <= keep for s in spectrum)
        y, *_ = fourier_convolution(*tensors, list(size), keep)
        first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), wanted)
        results.append([y, *first, *second])
    assert len(shapes[1]) == 1
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    arguments = (*tensors, list(size), False)
    torch.library.opcheck(torch.ops.projunn.fourier_convolution.default, arguments)


class _FromHost(TorchDispatchMode):
    """Refuses tensors made of Python's numbers: on a GPU each waits for all that it has to do."""

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        assert operator is not torch.ops.aten.lift_fresh.default
        return operator(*arguments, **(options or {}))


@pytest.mark.parametrize("real", [True, False])
def test_no_backward_copies_numbers_from_the_host(real):
    """A CUDA graph cannot capture that either: complex and sketched convolutions raised there."""
    size = [3, 4]
    x, weight, own, bias = (None if t is None else t.detach() for t in draw((3, 4), real))
    y, *spectrum = fourier_convolution(x, weight, own, bias, size)
    bases = torch.randn_like(weight[..., :1, :]), None if own is None else torch.randn_like(own[..., :1])
    for gradients in (
        lambda: fourier._gradients(fourier._FAST, y, *spectrum, weight, own, size, [True] * 3),
        lambda: fourier._sketched_gradients(y, spectrum, weight, own, *bases, size, [True] * 3),
    ):
        expected = gradients()
        with _FromHost():
            torch.testing.assert_close(gradients(), expected)


def test_constants_are_there_when_they_are_returned():
    """They are made on the CPU: another stream that uses them would not wait for this one's launches."""
    found = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), options=None):
            result = operator(*arguments, **(options or {}))
            if isinstance(result, torch.Tensor) and result.is_meta:
                found.append(operator)
            return result

    device = torch.device("meta")
    with Watching():
        eager._conjugation.__wrapped__(1.0, 3, torch.float32, device)
        eager.index.__wrapped__((4, 6), device)
        for table, size in ((tables.along_rows, 20), (tables.of_all_points, (4, 6))):
            table.__wrapped__(size, device, False)
        tables.along_columns.__wrapped__(20, device)
    assert set(found) == {torch.ops.aten._to_copy.default}, found
