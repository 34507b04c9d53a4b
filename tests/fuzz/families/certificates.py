"""Lipschitz bounds and certified answers of random nets under attack; what has no bound is refused.

power iteration in float64       no quotient ‖f(x + d) - f(x)‖ / ‖d‖ is above `lipschitz_bound`
gradient steps to the very edge  no answer changes within its certified radius, in float32
one layer without a bound        a TypeError that names it
"""

from copy import deepcopy

import torch
from torch import nn

from projunn import certified_accuracy, lipschitz_bound
from projunn.nn import GroupSort, UnitaryLinear, UnitaryRNN
from tests.fuzz.checks import check
from tests.fuzz.nets import attacked, largest_radius, random_net, stretched

SHARE = 4
EXAMPLES = 4


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Tripled(UnitaryLinear):
    def forward(self, input):
        return 3 * super().forward(input)


class Residual(nn.Sequential):
    def forward(self, input):
        return input + super().forward(input)


class Called(nn.ReLU):
    def __call__(self, input):
        return 4 * super().__call__(input)


def hooked(register):
    def make():
        layer = nn.Identity()
        getattr(layer, register)(
            lambda *arguments: 4 * arguments[-1] if register[9:] == "forward_hook" else None
        )
        return layer

    return make


def replaced():
    layer = nn.Tanh()
    layer.forward = lambda input: 4 * input
    return layer


# Layers without a bound, by the word that the refusal must have.
UNKNOWN = {
    "Doubled": lambda: Doubled(3, 3),
    "Tripled": lambda: Tripled(3, 3),
    "Residual": lambda: Residual(nn.Linear(3, 3)),
    "Called": Called,
    "Identity": hooked("register_forward_hook"),
    "Identity ": hooked("register_forward_pre_hook"),
    "Tanh": replaced,
    "BatchNorm1d": lambda: nn.BatchNorm1d(3).eval(),
    "LayerNorm": lambda: nn.LayerNorm(3),
    "Softmax": lambda: nn.Softmax(1),
    "GELU": nn.GELU,
    "PReLU": nn.PReLU,
    "Conv2d": lambda: nn.Conv2d(1, 1, 3),
    "MaxPool2d": lambda: nn.MaxPool2d(2, return_indices=True),
    "LPPool2d": lambda: nn.LPPool2d(2, 2),
    "Upsample": lambda: nn.Upsample(scale_factor=2),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d((7, 7)),
    "Dropout": lambda: nn.Dropout(0.5).train(),
    "Flatten": lambda: nn.Flatten(0),
    "GroupSort": lambda: GroupSort(1, 0),
    "LSTM": lambda: nn.LSTM(3, 3),
    "UnitaryRNN": lambda: UnitaryRNN(3, 3),
    "Linear": lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
    "Linear ": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
}


def case(draw):
    torch.manual_seed(draw.below(2**31))
    if draw.chance("unsupported", 0.5):
        return check_refusal(draw)
    model, shape = random_net(draw.unnamed, draw.chance("huge biases", 0.3))
    draw.said["net"] = " ".join(type(layer).__name__ for layer in model)
    if draw.chance("off the manifold", 0.3):  # drift, or weights that were edited
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(draw.unnamed((1.0, 0.7, 1.3)))
    x = draw.randn(EXAMPLES, *shape, dtype=torch.float32) * draw.choice("size", (0.1, 1.0, 10.0))
    bound = lipschitz_bound(model)
    found = stretched(deepcopy(model).double(), x.double(), 20, draw.generator)
    check(found <= bound * (1 + 1e-7), f"stretches by {found:.9g}, the bound is {bound:.9g}")
    attack(draw, model, x)


def attack(draw, model, x):
    labels = model(x).argmax(1)
    certified = torch.tensor([largest_radius(model, one[None]) for one in x], dtype=torch.float64)
    for target in range(model(x).shape[1]):
        moved = attacked(model, x, target, certified, draw.generator)
        inside = (moved.double() - x.double()).flatten(1).norm(dim=1) <= certified
        kept = model(moved).argmax(1) == labels
        check(kept[inside].all(), f"a certified answer becomes {target}")


def check_refusal(draw):
    """Check that neither claim is made of a chain with a layer that has no known bound."""
    name = draw.choice("layer", sorted(UNKNOWN))
    inner = UNKNOWN[name]()
    around = [nn.Linear(3, 3).eval(), nn.ReLU(), UnitaryLinear(3, 3)]
    around.insert(draw.below(4), inner)
    model = nn.Sequential(*around) if draw.chance("chain", 0.7) else inner
    if draw.chance("nested", 0.3):
        model = nn.Sequential(nn.Sequential(model), nn.Identity())
    batch = [(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))]
    for claim in (lipschitz_bound, lambda m: certified_accuracy(m, batch, [0.1])):
        try:
            claim(model)
        except TypeError as error:
            check(name.strip() in str(error), f"the refusal does not name {name}: {error}")
        else:
            check(False, f"a claim is made of {name}")
