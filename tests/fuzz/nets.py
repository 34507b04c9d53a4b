"""Random chains of layers with known bounds, and attacks on what is certified of them."""

import torch
from torch import nn

from projunn import certified_accuracy, constrain, lipschitz_bound
from projunn.models import CayleyConv2d, Center
from projunn.nn import (
    BlockUnitaryLinear,
    GroupSort,
    LocalUnitaryConv2d,
    MaxMin,
    UnitaryConv2d,
    UnitaryLinear,
)


def random_net(choose, huge_biases=False):
    """A chain of layers with known bounds, and the shape of its inputs.

    Args:
        choose: a function that chooses one of some options.
        huge_biases: whether the biases are so large that rounding decides.
    """
    layers, shape = [], (choose((3, 8, 20)),)
    images, centred = choose((False, True)), choose((None, None, 0.3, 100.0))
    if images:
        channels, size = choose((1, 2, 3)), choose((4, 5, 6, 7))
        shape = (channels, size, size)
        for _ in range(choose((1, 2, 3))):
            out = choose((2, 4, 6))
            kind = choose((UnitaryConv2d, local, CayleyConv2d))
            layers += [
                kind(channels, out, size),
                choose((MaxMin, nn.ReLU, lambda: nn.LeakyReLU(-3.0)))(),
            ]
            channels = out
        last = choose((None, None, nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1), "1 x 1"))
        if last is not None:
            layers += [nn.Conv2d(channels, channels, 1) if last == "1 x 1" else last]
        pooled = choose((False, False, True))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if pooled else [nn.Flatten()]
        features = channels * (1 if pooled else size**2)
    else:
        features = shape[0]
    for _ in range(choose((0, 1, 2))):
        width = choose((4, 32, 100))
        layers += [choose((nn.Linear, UnitaryLinear))(features, width)]
        if choose((False, True)):
            layers += [BlockUnitaryLinear(2, width // 2, num_factors=2)]
        layers += [
            choose(
                (MaxMin, nn.ReLU, nn.Tanh, nn.Identity, lambda: GroupSort(4), lambda: nn.Dropout(0.5))
            )()
        ]
        features = width
    if centred is not None:
        layers.insert(0, Center(centred * torch.randn(shape)))
    last = choose((UnitaryLinear, nn.Linear, normalized))(features, choose((2, 3, 10)))
    model = nn.Sequential(*layers, last).eval()
    if huge_biases:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.mul_(choose((1e2, 1e4)))
    return model, shape


def local(channels, out, size):
    """A convolution with a kernel of 2 x 2 or 3 x 3, for images of any size."""
    padding = "zeros" if out > 4 else "circular"
    return LocalUnitaryConv2d(channels, out, 2 + size % 2, padding_mode=padding)


def normalized(features, classes):
    """A linear layer whose rows have norm 1."""
    return constrain(nn.Linear(features, classes), blocks=classes)


def largest_radius(model, x):
    """The largest radius that is certified for one input, of many that lie closest at the upper end.

    That end is the radius in exact arithmetic, by the rows of the last layer.
    """
    logits = model(x).double()
    label = logits.argmax(1).item()
    rows = model[-1].weight.detach().double()
    gaps = (logits[0, label] - logits[0]) / (rows[label] - rows).norm(dim=1)
    gaps[label] = torch.inf
    exact = (gaps.amin() / lipschitz_bound(nn.Sequential(*list(model)[:-1]))).item()
    if exact <= 0:
        return 0.0
    radii = exact * (1 - torch.logspace(0, -12, 4000, dtype=torch.float64))
    count = int(sum(certified_accuracy(model, [(x, logits.argmax(1))], radii.tolist())))
    return radii[count - 1].item() if count else 0.0


def attacked(model, x, target, radius, generator):
    """Inputs at the very edge of each radius, by steepest ascent of the target's logit."""
    x, radius = x.double(), radius.view(-1, *(1,) * (x.ndim - 1))
    moved = x + 1e-3 * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    for _ in range(15):
        at = moved.float().requires_grad_()
        logits = model(at)
        (gradient,) = torch.autograd.grad((logits[:, target] - logits.amax(1)).sum(), at)
        step = (moved - x) / 2 + gradient.double() / lengths(gradient.double()) * radius
        moved = x + step * (radius / lengths(step))
    return moved.float()


def stretched(model, x, steps, generator):
    """The largest ‖f(x + d) - f(x)‖ / ‖d‖ that power iteration on the derivative finds, in float64.

    Each quotient is a lower bound of the Lipschitz constant, whether or not the iteration converges.
    """
    d = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    best = 0.0
    for step in range(steps):
        d = d / lengths(d) * (1e-3, 1.0)[step % 2]
        at = (x + d).requires_grad_()
        difference = model(at) - model(x).detach()
        quotients = difference.detach().flatten(1).norm(dim=1) / lengths(d).flatten()
        best = max(best, quotients.max().item())
        (d,) = torch.autograd.grad((difference * difference.detach()).sum(), at)
    return best


def lengths(x):
    return x.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, *(1,) * (x.ndim - 1))
