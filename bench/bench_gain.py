"""How large should activations after unitary linear layers be?  Nets of 2, 6 and 12 on the digits.

A unitary layer keeps the norm of its input, and ReLU takes away half of its square: a net of such layers
hands its readout ever smaller numbers.  Here each activation is multiplied with the gain that makes up
for that (`torch.nn.init.calculate_gain` has ReLU's), and what the readout sees with one factor
more.  An input factor of 4 makes what the first activation sees about 1 (the root of the mean square),
where GELU is not nearly linear.  Beside them a plain net, from PyTorch's initial weights and from He's.
AdamW, ours of rank 4.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from bench.records import Results, Row, show
from projunn.nn import MaxMin, UnitaryLinear
from projunn.optim import AdamW
from projunn.tasks.datasets import load_images

_WIDTH, _BATCH, _STEPS = 256, 64, 150
_RATES = (1e-3, 3e-3)
_ACTIVATIONS: dict[str, tuple[type[nn.Module], float]] = {
    "ReLU": (nn.ReLU, math.sqrt(2)),
    "GELU": (nn.GELU, 1 / math.sqrt(0.425)),  # 0.425 is the mean of GELU(z)^2, z normal
    "MaxMin": (MaxMin, 1.0),
}


@dataclass(frozen=True)
class _Net:
    """Hidden layers of one kind.

    Attributes:
        unitary: of our layers, or of `nn.Linear`.
        he: the plain layers start from He's weights, not from PyTorch's.
        gain: of every activation; None for 1.
        readout: the factor of what the last layer sees.
        entry: the factor of the input.
    """

    name: str
    unitary: bool
    he: bool = False
    gain: bool = False
    readout: float = 1.0
    entry: float = 1.0


_NETS = (
    _Net("plain", unitary=False),
    _Net("plain, He", unitary=False, he=True),
    _Net("unitary", unitary=True),
    *(_Net(f"unitary, gain, {x:g}", unitary=True, gain=True, readout=x) for x in (1.0, 4.0, 16.0)),
    *(
        _Net(f"unitary, gain, 4 and {x:g}", unitary=True, gain=True, readout=x, entry=4.0)
        for x in (4.0, 8.0)
    ),
)


class _Scaled(nn.Module):
    """An activation times a factor."""

    def __init__(self, activation: nn.Module, factor: float) -> None:
        super().__init__()
        self.activation, self.factor = activation, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.activation(x)


def _make(net: _Net, depth: int, activation: str) -> nn.Sequential:
    made, gain = _ACTIVATIONS[activation]
    layer: Callable[[int, int], nn.Module] = UnitaryLinear if net.unitary else nn.Linear
    layers: list[nn.Module] = [_Scaled(nn.Identity(), net.entry)]
    for i in range(depth):
        hidden = layer(64 if i == 0 else _WIDTH, _WIDTH)
        if net.he:
            nn.init.kaiming_normal_(hidden.get_parameter("weight"), nonlinearity="relu")
        layers += [hidden, _Scaled(made(), gain if net.gain else 1.0)]
    return nn.Sequential(*layers, _Scaled(nn.Identity(), net.readout), nn.Linear(_WIDTH, 10))


def _train(net: _Net, depth: int, activation: str, rate: float, seed: int) -> tuple[float, float]:
    """Held-out loss and accuracy after the steps."""
    (images, labels), (held_images, held_labels) = load_images("digits")
    torch.manual_seed(seed)
    model = _make(net, depth, activation)
    parameters = model.parameters()
    optimizer = (
        AdamW(parameters, lr=rate, rank=4) if net.unitary else torch.optim.AdamW(parameters, lr=rate)
    )
    source = torch.Generator().manual_seed(seed + 1)
    for _ in range(_STEPS):
        batch = torch.randint(len(images), (_BATCH,), generator=source)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch].flatten(1)), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        scores = model(held_images.flatten(1))
    loss = nn.functional.cross_entropy(scores, held_labels).item()
    return loss, (scores.argmax(1) == held_labels).float().mean().item()


def run(results: Results, quick: bool = False) -> None:
    """Three seeds of each net; in the short form one, of two layers with ReLU."""
    depths, activations, seeds = (2, 6, 12), list(_ACTIVATIONS), range(3)
    if quick:
        depths, activations, seeds = depths[:1], activations[:1], range(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    table, rows = [], []
    try:
        for layers, activation, net in product(depths, activations, _NETS):
            case: Row = {"layers": layers, "activation": activation, "net": net.name}
            line = dict(case)
            for rate in _RATES:
                ends = [_train(net, layers, activation, rate, seed) for seed in seeds]
                losses, right = zip(*ends, strict=True)
                loss, least, most = statistics.mean(losses), min(losses), max(losses)
                line[f"lr {rate:g}"] = f"{loss:.3f} ({least:.3f} to {most:.3f})"
                spread = {"loss": loss, "least": least, "most": most}
                rows.append(case | {"rate": rate} | spread | {"accuracy": statistics.mean(right)})
            table.append(line)
    finally:
        torch.set_num_threads(threads)
    show(f"{_STEPS} steps on the digits, held-out loss, seeds: {len(seeds)}", table)
    results.append("gain", rows)
