"""Bounds against the networks they bound; attacks on them are a family of the fuzzer."""

import random
from copy import deepcopy

import pytest
import torch
from torch import nn

from projunn import certified_accuracy, lipschitz_bound
from projunn.layer_bounds import bound_of
from projunn.lipschitz import _logits, operator_norm
from projunn.models import CayleyConv2d, LipschitzConvNet
from projunn.nn import (
    BlockUnitaryLinear,
    LocalUnitaryConv2d,
    MaxMin,
    OffsetCrossEntropyLoss,
    UnitaryConv2d,
    UnitaryLinear,
)
from projunn.optim import RMSprop
from tests.fuzz.nets import attacked, largest_radius, normalized, random_net


def test_measured_norms_show_drift():
    layer = UnitaryConv2d(2, 3, (4, 5))
    assert operator_norm(layer) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        layer.weight[0] *= 1.5
    assert operator_norm(layer) == pytest.approx(1.5, abs=1e-5)
    blocks = BlockUnitaryLinear(2, 3, num_factors=2)
    with torch.no_grad():
        blocks.weight[0, 1] *= 3
    assert operator_norm(blocks) == pytest.approx(3, abs=1e-5)
    assert operator_norm(CayleyConv2d(2, 2, 4)) == pytest.approx(1, abs=1e-5)
    plain = nn.Linear(3, 4)
    assert operator_norm(plain) == pytest.approx(torch.linalg.matrix_norm(plain.weight, 2).item())
    chain = nn.Sequential(plain, nn.Sequential(MaxMin(), UnitaryLinear(4, 4)))
    assert lipschitz_bound(chain) == pytest.approx(operator_norm(plain), rel=1e-5)


@pytest.mark.parametrize("padding", ["circular", "zeros"])
@pytest.mark.parametrize("stretched", [1.0, 1.3, 0.5])
@pytest.mark.parametrize(("channels", "kernel", "stride"), [((2, 3), 3, 1), ((3, 2), (2, 3), (1, 2))])
def test_a_small_kernel_has_one_bound_for_images_of_every_size(
    channels, kernel, stride, stretched, padding
):
    layer = LocalUnitaryConv2d(*channels, kernel, stride, False, padding)
    with torch.no_grad():
        layer.directions[0] *= stretched
    bound = operator_norm(layer)
    norms = []
    for size in (4, 5, 6):
        matrix = torch.func.jacrev(layer)(torch.zeros(channels[0], size, size))
        matrix = matrix.reshape(-1, channels[0] * size**2)
        norms.append(torch.linalg.matrix_norm(matrix.double(), 2).item())
    assert max(norms) <= bound
    if stretched == 1:
        assert bound < 1 + 1e-5
    elif stretched > 1:
        assert max(norms) > 1.1
        assert bound < 2 * stretched**2


@torch.no_grad()
def test_a_small_kernel_under_autocast():
    """Its norm is that of outside; the convolution rounds the kernel, by less than the bound says."""
    layer, x = LocalUnitaryConv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    exact = deepcopy(layer).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert operator_norm(layer) < 1 + 1e-5
        (_, error), found = _logits([(layer, bound_of(layer))], x, torch.zeros(1)), layer(x)
    assert found.dtype == torch.bfloat16
    assert 0 < torch.linalg.vector_norm(found - exact) < error


def test_certificates_are_sound_and_shrink_with_the_norm():
    """No perturbation within a certified radius changes the answer, whichever direction it takes."""
    model = LipschitzConvNet(1, 4, 8, width=4).eval()
    x = torch.randn(32, 1, 8, 8)
    labels = model(x).argmax(1)
    radii = [0.0, 0.05, 0.2, 1.0, 100.0]
    shares = certified_accuracy(model, [(x[:16], labels[:16]), (x[16:], labels[16:])], radii)
    assert shares[0] == 1
    assert shares[-1] == 0
    assert shares == sorted(shares, reverse=True)
    margins = model(x).topk(2).values
    margins = margins[:, 0] - margins[:, 1]
    radius = margins / 2**0.5 * (1 - 1e-4)
    other = model(x).topk(2).indices[:, 1]
    moved = x.clone().requires_grad_()
    for _ in range(10):  # steepest ascent to the next class
        logits = model(moved)
        gap = (logits.gather(1, other[:, None]) - logits.gather(1, labels[:, None])).sum()
        (gradient,) = torch.autograd.grad(gap, moved)
        step = moved.detach() - x + gradient
        step = step / step.flatten(1).norm(dim=1)[:, None, None, None] * radius[:, None, None, None]
        moved = (x + step).detach().requires_grad_()
    assert torch.equal(model(moved).argmax(1), labels)
    with torch.no_grad():  # twice the logits of a layer twice as large certify the same
        model[-1].weight *= 2
        model[-1].bias *= 2
    assert certified_accuracy(model, [(x, labels)], radii) == shares
    half = certified_accuracy(model, [(x, labels)], [0.1], lipschitz=2.0)
    assert half == certified_accuracy(model, [(x, labels)], [0.2], lipschitz=1.0)


@pytest.mark.parametrize("last", [nn.Linear, UnitaryLinear, normalized])
def test_a_linear_model_is_certified_up_to_its_decision_boundary(last):
    """The distance to the hyperplane of two classes is their gap over the distance of their rows."""
    model = last(6, 4)
    with torch.no_grad():
        model.weight[1] = model.weight[0] + 0.01 * torch.randn(6)  # two classes that are much alike
    x = torch.randn(64, 6)
    y = model(x).argmax(1)
    weight, logits = model.weight.detach().double(), model(x).detach().double()
    gaps = logits.gather(1, y[:, None]) - logits
    distances = gaps / torch.cdist(weight[y][:, None], weight[None])[:, 0]
    distances[torch.arange(64), y] = torch.inf
    nearest = distances.min(1)
    for i in range(64):
        r, wanted = nearest.values[i].item(), nearest.indices[i]
        batch = [(x[i : i + 1], y[i : i + 1])]
        assert certified_accuracy(model, batch, [r * 0.999 - 1e-4, r * 1.001]) == [r > 2e-4, 0]
        across = weight[wanted] - weight[y[i]]
        moved = x[i].double() + across / across.norm() * (r * 1.001 + 1e-4)
        assert model(moved.float()).argmax() != y[i]


@pytest.mark.parametrize("last_layer", ["unitary", "normalized"])
def test_certificates_of_a_net_trained_for_margins_hold_under_attack(last_layer):
    model = LipschitzConvNet(1, 4, 8, width=4, last_layer=last_layer, mean=torch.tensor(0.4))
    optimizer = RMSprop(model.parameters(), lr=1e-3, unitary_lr=2e-2, rank=4)
    x, y = torch.rand(24, 1, 8, 8), torch.arange(24) % 4
    loss_of = OffsetCrossEntropyLoss()
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    assert lipschitz_bound(nn.Sequential(*list(model)[:-1])) < 1 + 1e-5
    torch.testing.assert_close(model[-1].weight.norm(dim=1), torch.ones(4))
    labels = model(x).argmax(1)
    assert (labels == y).float().mean() > 0.9
    radii = torch.tensor([largest_radius(model, one[None]) for one in x], dtype=torch.float64)
    assert radii.median() > 0.05
    for target in range(4):
        moved = attacked(model, x, target, radii, torch.Generator().manual_seed(target))
        inside = (moved.double() - x.double()).flatten(1).norm(dim=1) <= radii
        assert torch.equal(model(moved).argmax(1)[inside], labels[inside])


def test_subtracting_a_mean_moves_no_radius():
    """Of a net whose biases undo the mean, in float64: what is left is the rounding."""
    torch.manual_seed(0)
    x, mean = torch.rand(16, 1, 8, 8, dtype=torch.float64), torch.rand(1, 8, 8, dtype=torch.float64)
    plain = LipschitzConvNet(1, 4, 8, width=4).double().eval()
    centred = LipschitzConvNet(1, 4, 8, width=4, mean=mean).double().eval()
    centred.load_state_dict(plain.state_dict() | {"center.mean": mean})
    labels = plain(x).argmax(1)
    for radius in (0.01, 0.05, 0.2):
        (ours,) = certified_accuracy(centred, [(x + mean, labels)], [radius])
        assert [ours] == certified_accuracy(plain, [(x, labels)], [radius])
    assert operator_norm(centred.center) == 1


def test_leaky_slopes_count():
    assert lipschitz_bound(nn.LeakyReLU(0.1)) == 1
    assert lipschitz_bound(nn.Sequential(nn.LeakyReLU(5.0), nn.LeakyReLU(-2.0))) == 10


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class DoubledConv(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return 2 * super()._conv_forward(input, weight, bias)


class Residual(nn.Sequential):
    def forward(self, input):
        return input + super().forward(input)


def hooked():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda layer, inputs, output: 4 * output)
    return layer


def replaced():
    layer = nn.Identity()
    layer.forward = lambda input: 4 * input
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm2d(3), "BatchNorm2d"),
        (nn.AdaptiveAvgPool2d((7, 7)), "depends on the size of the input"),
        (nn.Conv2d(2, 2, 3), "Conv2d.*, whose filter is larger than 1"),
        (nn.Conv2d(2, 2, 1, padding=1, padding_mode="circular"), "reads numbers several times"),
        (nn.MaxPool2d(2, return_indices=True), "MaxPool2d.*, which returns indices too"),
        (nn.Dropout(0.5), r"Dropout\(p=0.5.*\) in training mode"),
        (nn.Sequential(Doubled(2, 2)), "Doubled, which changes Linear.forward"),
        (DoubledConv(2, 2, 1), "DoubledConv, which changes Conv2d.forward"),
        (Residual(nn.Identity()), "Residual, which changes Sequential.forward"),
        (hooked(), "Linear with forward hooks"),
        (torch.nn.utils.spectral_norm(nn.Linear(2, 2)), "Linear with forward hooks"),
        (torch.nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), "parametrization in training"),
        (replaced(), "Identity, which changes Identity.forward"),
        (nn.Flatten(0), "mixes the inputs of a batch"),
        (MaxMin(0), "sorts along the batch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_known_bound_is_refused_by_name(layer, message):
    with pytest.raises(TypeError, match=message):
        lipschitz_bound(layer)


@pytest.mark.parametrize(
    "layer",
    [
        MaxMin(-2),
        nn.PixelUnshuffle(2),
        UnitaryConv2d(2, 2, 4),
        LocalUnitaryConv2d(2, 2, 2),
        nn.Conv2d(2, 2, 1),
    ],
)
def test_no_certificate_where_the_inputs_of_a_batch_are_mixed(layer):
    shape = (2, 4) if isinstance(layer, MaxMin) else (2, 4, 4)  # as if without a batch
    with pytest.raises(TypeError, match="batch"):
        certified_accuracy(layer, [(torch.randn(shape), torch.zeros(2, dtype=torch.long))], [0.1])


@pytest.mark.parametrize("refused", [nn.BatchNorm2d(3), Residual(nn.Identity())])
def test_a_refusal_says_where_the_layer_is_and_how_to_go_on(refused):
    model = nn.Sequential(nn.Identity(), nn.Sequential(refused))
    for measure in (lipschitz_bound, lambda model: certified_accuracy(model, [], [0.1])):
        with pytest.raises(TypeError, match=r"^layer 1\.0: no bound is known for") as caught:
            measure(model)
        assert type(refused).__name__ in str(caught.value)
        assert "known are Linear, UnitaryLinear" in str(caught.value)
        assert "lipschitz=" in str(caught.value)


def test_a_single_radius_gives_one_share():
    batch = [(torch.tensor([[1.0, 0.0], [0.1, 0.0]]), torch.tensor([0, 0]))]
    assert certified_accuracy(nn.Identity(), batch, 0.3) == [0.5]


def test_dropout_counts_in_evaluation():
    assert lipschitz_bound(nn.Dropout(0.5).eval()) == 1


@pytest.mark.parametrize("seed", range(24))
def test_rounding_of_the_logits_is_within_its_bound(seed):
    torch.manual_seed(seed)
    model, shape = random_net(random.Random(seed).choice, huge_biases=seed % 3 == 0)
    x = torch.randn(16, *shape)
    with torch.no_grad():
        layers = [(layer, bound_of(layer)) for layer in model]
    logits, bound = _logits(layers, x, torch.zeros(1, dtype=torch.float64))
    precise = deepcopy(model).double()(x.double())
    error = (logits - precise).norm(dim=1)
    assert (error <= bound[:, 0]).all()


def test_errors():
    for radii in ([-1.0], [0.1, float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="radii: got"):
            certified_accuracy(nn.Identity(), [], radii)
    for constant in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="lipschitz: got"):
            certified_accuracy(nn.Identity(), [], [0.1], lipschitz=constant)
    with pytest.raises(ValueError, match="batches: got no input"):
        certified_accuracy(nn.Identity(), [], [0.0])
    images, labels = torch.rand(3, 4), torch.tensor([0, 1, 2])
    for wrong in (torch.tensor([0, 1, 4]), torch.tensor([-1, 0, 1])):
        with pytest.raises(ValueError, match=r"labels from .*, wanted .* 4 classes, from 0"):
            certified_accuracy(nn.Identity(), [(images, wrong)], [0.0])
    for given in (torch.rand(3, 2, 4), torch.rand(3, 4, dtype=torch.complex64)):
        with pytest.raises(ValueError, match=r"model: got logits of shape .*, wanted real ones"):
            certified_accuracy(nn.Identity(), [(given, labels)], [0.1], lipschitz=1.0)
    with pytest.raises(TypeError, match="batches: got one of Tensor, wanted pairs"):
        certified_accuracy(nn.Identity(), (images, labels), [0.0])
    for wrong in (nn.functional.one_hot(labels, 4), labels.int(), labels[:2]):
        with pytest.raises(ValueError, match=r"labels of shape .* wanted one class for each input"):
            certified_accuracy(nn.Identity(), [(images, wrong)], [0.0])
