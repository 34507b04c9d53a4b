"""EUNN: its layers of rotations against matrices, in float64, and its network against a plain loop."""

import warnings

import pytest
import torch

from projunn.models import EURNN, EUNNLinear
from projunn_kernels import apply_nonlinearity
from tests.dense import defect, precise, roundoff

SHAPES = [(2, 1, "neighbours"), (6, 1, "neighbours"), (6, 4, "neighbours"), (10, 5, "neighbours")]
SHAPES += [(2, None, "fft"), (16, None, "fft")]


def rotation(layer, level, i, j, place):
    """The n x n matrix of one rotation, of the coordinates i and j."""
    matrix = torch.eye(layer.features, dtype=torch.complex128)
    t = layer.angles[level, place].double()
    p = torch.zeros(()) if layer.phases is None else layer.phases[level, place].double()
    phase = torch.exp(1j * p.double())
    matrix[i, i], matrix[i, j] = phase * t.cos(), -phase * t.sin()
    matrix[j, i], matrix[j, j] = t.sin() + 0j, t.cos() + 0j
    return matrix


@torch.no_grad()
def oracle(layer):
    """U as a product of n x n matrices, one for each rotation."""
    n = layer.features
    u = torch.eye(n, dtype=torch.complex128)
    for level in range(layer.depth):
        if layer.pattern == "fft":
            bits = range(n.bit_length() - 1)
            distance = n >> (level + 1)
            # After so many shuffles the place of a coordinate is its number, its bits turned left.
            order = sorted(range(n), key=lambda i: _turned(i, level + 1, len(bits)))
            pairs = [(order[2 * k], order[2 * k + 1]) for k in range(n // 2)]
            assert all(j - i == distance for i, j in pairs)
        else:
            shift = level % 2
            pairs = [((2 * k + shift) % n, (2 * k + 1 + shift) % n) for k in range(n // 2)]
        for place, (i, j) in enumerate(pairs):
            u = rotation(layer, level, i, j, place) @ u
    if layer.output_phases is not None:
        phases = torch.exp(1j * layer.output_phases.double())
        if layer.pattern == "neighbours" and layer.depth % 2 == 0:
            phases = phases.roll(1)
        u = phases.unsqueeze(1) * u
    return u if layer.is_complex else u.real


def _turned(i, by, bits):
    return ((i << by) | (i >> (bits - by))) & ((1 << bits) - 1)


@pytest.mark.parametrize(("n", "depth", "pattern"), SHAPES)
def test_a_product_is_that_with_the_matrix_of_all_rotations(n, depth, pattern, dtype):
    layer = EUNNLinear(n, depth, pattern, dtype=dtype)
    expected, x = oracle(layer), torch.randn(3, 2, n, dtype=dtype)
    c = 20 * roundoff(dtype)
    assert (precise(layer.matrix().detach()) - expected).abs().max() < c
    assert (precise(layer(x).detach()) - precise(x) @ expected.mT).abs().max() < 4 * c
    assert defect(layer.matrix().detach()) < c


@pytest.mark.parametrize(("n", "depth", "pattern"), SHAPES)
@pytest.mark.parametrize("complex_", [False, True])
def test_gradients_are_those_of_finite_differences(n, depth, pattern, complex_):
    dtype = torch.complex128 if complex_ else torch.float64
    layer = EUNNLinear(n, depth, pattern, dtype=dtype)
    x = torch.randn(3, n, dtype=dtype, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def product(x, *given):
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), x)

    assert torch.autograd.gradcheck(product, (x, *parameters))


def test_a_backward_in_many_chunks_is_that_in_one(monkeypatch):
    layer, rnn = EUNNLinear(8, 5, dtype=torch.complex128), EURNN(2, 8, 3, dtype=torch.complex128)
    x, sequence = torch.randn(7, 8, dtype=torch.complex128), torch.randn(7, 2, 2, dtype=torch.float64)

    def gradients():
        loss = layer(x).abs().sum() + rnn(sequence)[0].abs().square().sum()
        return torch.autograd.grad(loss, [*layer.parameters(), *rnn.parameters()])

    whole = gradients()
    monkeypatch.setattr("projunn.models.eunn.rotations._CHUNK", 100)
    torch.testing.assert_close(gradients(), whole)


@pytest.mark.parametrize("pattern", ["neighbours", "fft"])
@pytest.mark.parametrize(
    ("nonlinearity", "complex_"),
    [("modrelu", False), ("modrelu", True), ("relu", False), ("tanh", False), ("tanh", True)],
)
def test_the_network_over_time_is_a_loop_of_its_formula(pattern, nonlinearity, complex_):
    dtype = torch.complex128 if complex_ else torch.float64
    rnn = EURNN(3, 8, pattern=pattern, nonlinearity=nonlinearity, dtype=dtype)
    if rnn.modrelu_bias is not None:
        torch.nn.init.uniform_(rnn.modrelu_bias, -0.3, 0.3)
    layer = EUNNLinear(8, pattern=pattern, dtype=dtype)
    layer.load_state_dict(rnn.rotations.state_dict())
    x = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(6, 4, 8, dtype=dtype)
    states, last = rnn(x)
    assert last.shape == (1, 4, 8)
    ours = torch.autograd.grad(states, [x, *rnn.parameters()], cotangent)

    matrix, h, expected = layer.matrix(), torch.zeros(4, 8, dtype=dtype), []
    for step in x:
        z = rnn.enter(step)
        z = torch.view_as_complex(z.unflatten(-1, (-1, 2))) if complex_ else z
        h = apply_nonlinearity(z + h @ matrix.mT, rnn.modrelu_bias, nonlinearity)
        expected.append(h)
    torch.testing.assert_close(states, torch.stack(expected))
    theirs = [x, *layer.parameters(), *rnn.enter.parameters()]
    theirs += [] if rnn.modrelu_bias is None else [rnn.modrelu_bias]
    found = torch.autograd.grad(torch.stack(expected), theirs, cotangent)
    by_name = dict(zip([id(p) for p in theirs[1:]], found[1:], strict=True))
    torch.testing.assert_close(ours[0], found[0])
    own = dict(rnn.named_parameters())
    for (name, parameter), gradient in zip(own.items(), ours[1:], strict=True):
        twin = getattr(layer, name.removeprefix("rotations."), None)
        torch.testing.assert_close(gradient, by_name[id(parameter if twin is None else twin)])


def test_the_network_keeps_no_matrix_and_no_states_between_its_rotations():
    """What autograd keeps of a pass over time: nothing of n^2 numbers, and no state but h_t."""
    rnn, kept = EURNN(2, 64, depth=6), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append((t.untyped_storage().data_ptr(), t.numel())), t)[1], lambda t: t
    ):
        rnn(torch.randn(50, 4, 2))
    sizes = dict(kept).values()
    assert max(sizes) <= 50 * 4 * 64
    assert sum(sizes) < 2 * 50 * 4 * 64


def test_input_of_batches_first_gives_the_same_states():
    rnn = EURNN(2, 8, batch_first=True)
    x = torch.randn(3, 5, 2)
    states, last = rnn(x)
    rnn.batch_first = False
    torch.testing.assert_close(states, rnn(x.transpose(0, 1))[0].transpose(0, 1))
    torch.testing.assert_close(last[0], states[:, -1])


def test_training_leaves_it_unitary_and_lowers_the_loss():
    layer, target = EUNNLinear(8, 8), torch.linalg.qr(torch.randn(8, 8))[0]
    target[0] *= torch.linalg.det(target).sign()  # rotations have determinant 1
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        losses.append((layer.matrix() - target).square().sum())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]
    assert defect(layer.matrix().detach()) < 20 * roundoff(torch.float32)


def test_a_complex_layer_takes_real_input():
    layer, x = EUNNLinear(8, dtype=torch.complex128), torch.randn(3, 8, dtype=torch.float64)
    gradients = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns where an imaginary part is lost
        for rows in (x, x.to(torch.complex128)):
            layer.zero_grad()
            output = layer(rows)
            output.abs()[:, 0].sum().backward()
            gradients.append([output.detach(), *(p.grad for p in layer.parameters())])
    for real, number in zip(*gradients, strict=True):
        torch.testing.assert_close(real, number)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: EUNNLinear(7), ValueError, "features: got 7, wanted an even number"),
        (lambda: EUNNLinear(12, pattern="fft"), ValueError, "wanted a power of two for the fft pattern"),
        (lambda: EUNNLinear(8, 2, "fft"), ValueError, "depth: got 2, wanted 3 or None"),
        (lambda: EUNNLinear(8, 0), ValueError, "depth: got 0, wanted a positive integer"),
        (lambda: EUNNLinear(8, pattern="ring"), ValueError, "pattern: got 'ring', wanted one of"),
        (lambda: EUNNLinear(8, dtype=torch.int64), TypeError, "dtype: got torch.int64"),
        (lambda: EUNNLinear(8)(torch.randn(3, 6)), ValueError, r"input: got shape \(3, 6\)"),
        (lambda: EUNNLinear(8)(torch.ones(8, dtype=torch.int64)), TypeError, "input: got torch.int64"),
        (lambda: EURNN(2, 8)(torch.randn(3, 2)), ValueError, r"wanted \(T, batch, 2\)"),
        (lambda: EURNN(2, 8, nonlinearity="relu", dtype=torch.complex64), ValueError, "nonlinearity"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()
