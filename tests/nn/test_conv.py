"""Unitary convolutions: exact, before and after training, and what their filters say."""

import copy

import pytest
import torch
from torch.nn import functional

import projunn
from projunn.nn import UnitaryConv1d, UnitaryConv2d, UnitaryConv3d, UnitaryConvTranspose2d
from projunn.optim import SGD, AdamW, RMSprop
from tests.dense import defect

KINDS = {1: UnitaryConv1d, 2: UnitaryConv2d, 3: UnitaryConv3d}
SIZES = [(1,), (2,), (7,), (8,), (7, 8), (4, 3), (1, 4), (2, 2), (3, 2, 4)]


def make(in_channels, out_channels, size, dtype=torch.float64, haar=True, **options):
    layer = KINDS[len(size)](in_channels, out_channels, size, dtype=dtype, **options)
    if haar:  # a filter that fills the image
        for parameter in projunn.unitary_parameters(layer):
            projunn.init.haar_(parameter)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def bias_of(layer):
    shape = (-1, *(1 for _ in layer.spatial_size))
    return layer._numbers(layer.bias).view(shape) if layer.bias is not None else 0.0


def dense(layer, x):
    """The definition: a strided circular correlation with the spatial filter."""
    taps, size = layer.spatial_filter(), layer.spatial_size
    places = torch.cartesian_prod(*(torch.arange(s) for s in size)).view(-1, len(size)).tolist()
    axes = tuple(range(2, 2 + len(size)))
    steps = tuple(slice(None, None, r) for r in layer.stride)
    total = 0.0
    for q in places:
        shifted = x.roll([-i for i in q], axes)[(..., *steps)]
        total = total + torch.einsum("oc,bc...->bo...", taps[(..., *q)], shifted)
    return total + bias_of(layer)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("channels", [(3, 3), (2, 5), (5, 2)])
def test_is_the_circular_convolution_with_its_filter(size, dtype, channels):
    layer = make(*channels, size, dtype)
    x = torch.randn(2, channels[0], *size, dtype=dtype)
    torch.testing.assert_close(layer(x), dense(layer, x), atol=1e-12, rtol=0)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    assert layer.spatial_filter().dtype == dtype


@pytest.mark.parametrize("stride", [2, (1, 3), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_strided_convolution(stride, dtype):
    layer = make(2, 3, (4, 6), dtype, stride=stride)
    x = torch.randn(2, 2, 4, 6, dtype=dtype)
    torch.testing.assert_close(layer(x), dense(layer, x), atol=1e-12, rtol=0)
    padded = functional.pad(x.real, (0, 5, 0, 3), mode="circular")
    taps = layer.spatial_filter()
    if not dtype.is_complex:
        plain = functional.conv2d(padded, taps, layer.bias, layer.stride)
        torch.testing.assert_close(layer(x), plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(7, 8), (4, 4), (5,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_adjoint_and_isometry(size, dtype):
    growing = make(2, 5, size, dtype, bias=False)
    shrinking = make(5, 2, size, dtype, bias=False)
    x = torch.randn(3, 2, *size, dtype=dtype)
    y = torch.randn(3, 5, *size, dtype=dtype)
    transposed, *_ = torch.autograd.functional.vjp(growing, x, y)[1:]  # A^H y
    left, right = (
        torch.vdot(y.flatten(), growing(x).flatten()),
        torch.vdot(transposed.flatten(), x.flatten()),
    )
    torch.testing.assert_close(left, right)
    torch.testing.assert_close(growing(x).norm(), x.norm())
    back = torch.autograd.functional.vjp(growing, x, growing(x))[1]
    torch.testing.assert_close(back, x)  # A^H A = I
    small = shrinking(y)
    lifted = torch.autograd.functional.vjp(shrinking, y, small)[1]
    torch.testing.assert_close(shrinking(lifted), small)  # A A^H = I
    assert small.norm() < y.norm()


def test_a_complex_layer_takes_real_input():
    layer = make(2, 3, (4, 3), torch.complex128)
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer(x.to(torch.complex128)))


def test_only_free_frequencies_are_parameters():
    layer = make(2, 3, (4, 6))
    count = sum(p.numel() for p in projunn.unitary_parameters(layer))
    assert count == 4 * 6 * 2 * 3  # as many numbers as the filter has
    response = layer.frequency_response()
    assert response.shape == (4, 6, 3, 2)
    assert defect(response.detach()) < 1e-14
    mirrored = response.flip((0, 1)).roll((1, 1), (0, 1)).conj()
    torch.testing.assert_close(response, mirrored)


def test_the_start_is_one_tap_that_mixes_channels():
    for dtype in (torch.float32, torch.complex64):
        layer = make(3, 5, (4, 6), dtype, haar=False)
        assert (layer._numbers(layer.bias) != 0).all()
        layer.reset_parameters()
        taps = layer.spatial_filter().detach()
        assert (layer.bias == 0).all()
        assert taps[..., 0, 0].abs().min() > 1e-4
        assert taps.flatten(2)[..., 1:].abs().max() < 1e-6
        assert defect(taps[..., 0, 0]) < 1e-6


TRAINED = [
    ((8, 8), {}),
    ((7, 7), {}),
    ((7, 8), {}),
    ((5, 12), {}),
    ((32, 32), {}),
    ((8, 8), {"stride": 2}),
    ((6, 10), {"out_channels": 9}),
    ((9,), {}),
    ((4, 5, 6), {}),
]


@pytest.mark.parametrize(("size", "options"), TRAINED)
def test_norm_is_preserved_after_200_steps(size, options):
    retraction = "polar" if size[-1] % 2 else "exp"
    stride = options.get("stride", 1)
    out = options.get("out_channels", 4 * stride ** len(size))
    layer = make(4, out, size, torch.float32, haar=False, stride=stride, bias=False)
    optimizer = RMSprop(layer.parameters(), lr=1e-2, unitary_lr=1e-2, retraction=retraction)
    source = torch.Generator().manual_seed(1)
    x = torch.randn(4, 4, *size, generator=source)
    target = torch.randn(layer(x).shape, generator=source)
    before = layer.weight.detach().clone()
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]
    assert (layer.weight - before).abs().max() > 0.1
    x = torch.randn(16, 4, *size, generator=source)
    sizes = layer(x).flatten(1).double().norm(dim=1) / x.flatten(1).double().norm(dim=1)
    assert (sizes - 1).abs().max() < 1e-5
    assert defect(layer.frequency_response().detach()) < 1e-5


def test_complex_layer_stays_unitary():
    layer = make(3, 3, (4, 5), torch.complex64, bias=False)
    optimizer = SGD(layer.parameters(), lr=1.0, unitary_lr=0.5, rank=2)
    x, target = (torch.randn(4, 3, 4, 5, dtype=torch.complex64) for _ in range(2))
    for _ in range(100):
        optimizer.zero_grad()
        (layer(x) - target).abs().square().mean().backward()
        optimizer.step()
    assert layer(x).norm().item() == pytest.approx(x.norm().item(), rel=1e-5)


def test_the_layer_learns_an_orthogonal_convolution():
    teacher = make(3, 3, (5, 6), torch.float32, bias=False)
    student = make(3, 3, (5, 6), torch.float32, bias=False)
    with torch.no_grad():  # "exp" does not change the sign of a determinant
        flips = torch.linalg.det(student.own_weight) * torch.linalg.det(teacher.own_weight) < 0
        student.own_weight[flips, 0] *= -1
    optimizer = SGD(student.parameters(), lr=1.0, unitary_lr=15.0, rank=3)
    losses = []
    for _ in range(400):
        x = torch.randn(8, 3, 5, 6)
        optimizer.zero_grad()
        loss = (student(x) - teacher(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("rule", [SGD, RMSprop, AdamW])
def test_sizes_without_paired_frequencies_train(rule):
    layer = make(3, 3, (2, 1), torch.float32, haar=False)
    assert layer.weight.numel() == 0
    optimizer = rule(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.randn(2, 3, 2, 1)) ** 3).sum().backward()
        optimizer.step()
    assert defect(layer.own_weight.detach()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("stride", [1, 2])
def test_resized(dtype, stride):
    layer = make(2, 3 * stride, (4, 6), dtype, stride=stride)
    same = layer.resized((4, 6))
    torch.testing.assert_close(same.weight, layer.weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(same.bias, layer.bias)
    double = layer.resized((8, 12))
    response = double.frequency_response()[::2, ::2]
    torch.testing.assert_close(response, layer.frequency_response(), atol=1e-5, rtol=0)
    odd = layer.resized((6, 10))
    assert odd.spatial_size == (6, 10)
    assert defect(odd.frequency_response().detach()) < 1e-6
    with pytest.raises(ValueError, match=r"layer.resized\(\(6, 10\)\)"):
        layer(torch.randn(1, 2, 6, 10))


def test_resizing_keeps_local_filters():
    """Convolve by a shift and channel mix: the same taps at any size."""
    layer = make(3, 3, (6, 6), haar=False)
    angle = 2 * torch.pi * layer._grid.wavenumbers()[:, 0] / 6
    shift = torch.polar(torch.ones_like(angle), -angle)[:, None, None]
    with torch.no_grad():
        matrix = layer.own_weight[0].clone()
        paired = layer._grid.paired
        projunn.matrix_view(layer.weight).copy_(shift[:paired] * matrix)
        layer.own_weight.copy_((shift[paired:] * matrix).real)
    larger = layer.resized((9, 8)).spatial_filter()
    torch.testing.assert_close(larger[:, :, -1, 0], matrix)
    assert larger.norm().item() == pytest.approx(3**0.5)


@pytest.mark.parametrize("size", [(7, 8), (4, 6), (5,), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_energy_outside_a_window(size, dtype):
    layer = make(3, 2, size, dtype)
    window = tuple(min(3 - axis % 2, s) for axis, s in enumerate(size))
    taps = layer.spatial_filter().detach()
    axes = tuple(range(2, taps.ndim))
    centred = taps.roll(tuple(w // 2 for w in window), axes)  # correlation: -w//2 .. (w-1)//2
    centred[(..., *(slice(w) for w in window))] = 0
    expected = centred.abs().square().sum()
    energy = layer.energy_outside(window)
    torch.testing.assert_close(energy, expected)
    total = layer.energy_outside(1) + taps[(..., *(0 for _ in size))].abs().square().sum()
    torch.testing.assert_close(total.item(), 2.0)  # co-isometric 2 x 3
    assert layer.energy_outside(size).item() == pytest.approx(0, abs=1e-12)
    parameters = projunn.unitary_parameters(layer)
    numeric = torch.autograd.gradcheck(lambda *_: layer.energy_outside(window), parameters)
    assert numeric


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_projected_gradient_is_the_gradient_of_a_local_filter(dtype):
    """Steepest descent among local filters: G keeps its product with every local direction."""
    layer = make(2, 2, (5, 6), dtype, bias=False)
    layer.project_gradient_(3)  # nothing to do yet
    x = torch.randn(2, 2, 5, 6, dtype=dtype)
    layer(x).abs().pow(3).sum().backward()
    parameters = projunn.unitary_parameters(layer)
    before = [p.grad.clone() for p in parameters]
    layer.project_gradient_(3)
    after = [p.grad.clone() for p in parameters]
    layer.project_gradient_(3)
    for p, grad in zip(parameters, after, strict=True):
        torch.testing.assert_close(p.grad, grad)  # a projection
    # Moving along the projected gradient changes taps inside the window only.
    taps = layer.spatial_filter().detach()
    with torch.no_grad():
        for p, grad, count in zip(parameters, after, (0.5, 1.0), strict=False):
            p += grad * (count if len(parameters) > 1 else 1.0)
    change = (layer.spatial_filter().detach() - taps).roll((1, 1), (2, 3))
    assert change[..., :3, :3].abs().max() > 1e-3
    change[..., :3, :3] = 0
    assert change.abs().max() < 1e-12
    assert sum((a * b).sum() for a, b in zip(before, after, strict=True)) > 0


def test_regularizer_pulls_the_filter_into_the_window():
    layer = make(2, 2, (6, 6), torch.float32)
    optimizer = SGD(layer.parameters(), lr=1.0, unitary_lr=2.0, rank=2)
    first = layer.energy_outside(3).item()
    for _ in range(150):
        optimizer.zero_grad()
        energy = layer.energy_outside(3)
        energy.backward()
        optimizer.step()
    assert energy.item() < 0.4 * first


@pytest.mark.requires_cpp
def test_compiles_to_one_graph_without_complex_numbers(recwarn):
    layer = torch.nn.Sequential(
        make(2, 4, (6, 5), torch.float32), torch.nn.ReLU(), make(4, 8, (6, 5), torch.float32)
    )
    x = torch.randn(3, 2, 6, 5, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True)

    def gradients(model):
        output = model(x)
        loss = output.square().mean() + layer[0].energy_outside(3)
        return output, *torch.autograd.grad(loss, [x, *layer.parameters()])

    for ours, theirs in zip(gradients(compiled), gradients(layer), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not [w for w in recwarn if "complex" in str(w.message)]


@pytest.mark.parametrize("sketch_rank", [None, 2])
def test_a_layer_that_keeps_its_input_trains_as_one_that_keeps_its_spectrum(sketch_rank):
    layer = make(3, 4, (4, 6), sketch_rank=sketch_rank)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    grads = []
    for keep in (True, False):
        layer.keep_spectrum = keep
        layer.zero_grad()
        layer(x).square().sum().backward()
        parts = [(p.grad, layer.bias.grad) for p in projunn.unitary_parameters(layer)]
        factored = projunn.FactoredTensor
        flat = [t for part in parts for t in part]
        grads.append([t.to_dense() if isinstance(t, factored) else t for t in flat])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert layer.resized((3, 3)).keep_spectrum is False


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [UnitaryConv2d, UnitaryConvTranspose2d])
@pytest.mark.parametrize("sketch_rank", [None, 1])
def test_a_layer_in_half_precision_computes_in_float32(kind, sketch_rank, half):
    x = torch.randn(5, 4, 6, 8).to(half)
    layer = kind(4, 2, (6, 8), 2, sketch_rank=sketch_rank).to(half)
    wanted = copy.deepcopy(layer).float()(x.float())
    found = layer(x)
    assert found.dtype == half
    assert torch.equal(found, wanted.to(half))
    assert torch.equal(layer.frequency_response(), copy.deepcopy(layer).float().frequency_response())
    plain = layer.to_plain()
    assert {p.dtype for p in plain.parameters()} == {half}
    assert torch.allclose(plain.float()(x.float()), wanted, atol=0.1)
    found.float().square().sum().backward()
    assert layer.weight.grad.dtype == half


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_norm_under_autocast_is_that_of_the_rounded_input(half):
    layer = make(3, 5, (8, 7), torch.float32, bias=False)
    x = torch.randn(16, 3, 8, 7).to(half).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", half):
        y = layer(x)
    assert y.dtype == torch.float32
    sizes = y.flatten(1).double().norm(dim=1) / x.flatten(1).double().norm(dim=1)
    assert (sizes - 1).abs().max() < 1e-6
    torch.testing.assert_close(y, layer(x.float().contiguous()))


def test_repr():
    text = "UnitaryConv2d(2, 8, spatial_size=(4, 6), stride=(2, 2), bias=False)"
    assert repr(make(2, 8, (4, 6), stride=2, bias=False)) == text
    assert repr(UnitaryConv1d(2, 3, 5, dtype=torch.complex64)).endswith("bias=True, complex)")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: UnitaryConv2d(0, 3, 4), ValueError, "in_channels: got 0, wanted a positive integer"),
        (lambda: UnitaryConv2d(1, 3, (4, 4, 4)), ValueError, "spatial_size: got"),
        (lambda: UnitaryConv2d(1, 3, (4, 0)), ValueError, "spatial_size: got 0"),
        (lambda: UnitaryConv2d(1, 3, 4, dtype=torch.bfloat16), TypeError, "dtype: got torch.bfloat16"),
        (lambda: UnitaryConv2d(1, 3, 4)(torch.ones(1, 2, 4, 4)), ValueError, "input: got shape"),
        (lambda: UnitaryConv2d(1, 3, 4)(torch.ones(4)), ValueError, "input: got shape"),
        (lambda: UnitaryConv2d(1, 3, 4)(torch.ones(1, 1, 8, 8)), ValueError, r"resized\(\(8, 8\)\)"),
        (
            lambda: UnitaryConv2d(1, 3, 4)(torch.ones(1, 4, 4) * 1j),
            TypeError,
            "input: got torch.complex64",
        ),
        (lambda: UnitaryConv2d(1, 3, 4).energy_outside(5), ValueError, r"window: got \(5, 5\)"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()
