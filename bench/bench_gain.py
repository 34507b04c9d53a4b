"""How large should activations after unitary linear layers be?  Nets of 2, 6 and 12 on the digits.

A unitary layer keeps the norm of its input, and ReLU takes away half of its square: a net of such layers
hands its readout ever smaller numbers.  Here each activation is multiplied with the gain that makes up
for that (`torch.nn.init.calculate_gain` has ReLU's), and what the readout sees with one factor
more.  An input factor of 4 makes what the first activation sees about 1 (the root of the mean square),
where GELU is not nearly linear.  Beside them a plain net, from PyTorch's initial weights and from He's.
AdamW, ours of rank 4.

With ``--data``, a file of larger images: is the first layer, which has more inputs than outputs, better
left plain?
"""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.records import Results, Row, show
from projunn.nn import MaxMin, UnitaryLinear
from projunn.optim import AdamW
from projunn.tasks.datasets import Labelled, load_images

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
        gain: whether each activation is multiplied with its gain.
        readout: the factor of what the last layer sees.
        entry: the factor of the input.
        first: whether the first layer is of our kind too, and has a gain.
    """

    name: str
    unitary: bool
    he: bool = False
    gain: bool = False
    readout: float = 1.0
    entry: float = 1.0
    first: bool = True


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

_PIXELS = 3.0  # times MNIST's, of which the root of the mean square is 0.33
_NETS_OF_FILES = (
    _Net("plain, He", unitary=False, he=True),
    _Net("unitary, all factors", unitary=True, gain=True, readout=4.0, entry=_PIXELS),
    _Net("first plain, He", unitary=True, he=True, gain=True, readout=4.0, entry=_PIXELS, first=False),
)


class _Scaled(nn.Module):
    """An activation times a factor."""

    def __init__(self, activation: nn.Module, factor: float) -> None:
        super().__init__()
        self.activation, self.factor = activation, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.activation(x)


def _make(net: _Net, pixels: int, depth: int, activation: str) -> nn.Sequential:
    made, gain = _ACTIVATIONS[activation]
    layers: list[nn.Module] = [_Scaled(nn.Identity(), net.entry)]
    for i in range(depth):
        unitary = net.unitary and (net.first or i > 0)
        layer: Callable[[int, int], nn.Module] = UnitaryLinear if unitary else nn.Linear
        hidden = layer(pixels if i == 0 else _WIDTH, _WIDTH)
        if net.he and not unitary:
            nn.init.kaiming_normal_(hidden.get_parameter("weight"), nonlinearity="relu")
        layers += [hidden, _Scaled(made(), gain if net.gain and unitary else 1.0)]
    return nn.Sequential(*layers, _Scaled(nn.Identity(), net.readout), nn.Linear(_WIDTH, 10))


def _train(
    net: _Net, data: tuple[Labelled, Labelled], depth: int, activation: str, rate: float, seed: int
) -> tuple[float, float]:
    """Held-out loss and accuracy after the steps."""
    (images, labels), (held_images, held_labels) = data
    torch.manual_seed(seed)
    model = _make(net, images[0].numel(), depth, activation)
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


def run(results: Results, quick: bool = False, data: Path | None = None) -> None:
    """Three seeds of each net; in the short form one, of two layers with ReLU."""
    depths, activations, seeds = (2, 6, 12), tuple(_ACTIVATIONS), range(3)
    if quick:
        depths, activations, seeds = depths[:1], activations[:1], range(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if data is None:
            cases = product(depths, activations, _NETS)
            _measure(results, "digits", load_images("digits"), cases, seeds)
        else:
            cases = product(depths[:2], activations[:2], _NETS_OF_FILES)
            _measure(results, data.stem, load_images("mnist", str(data)), cases, seeds)
    finally:
        torch.set_num_threads(threads)


def _measure(
    results: Results,
    name: str,
    data: tuple[Labelled, Labelled],
    cases: Iterable[tuple[int, str, _Net]],
    seeds: range,
) -> None:
    table, rows = [], []
    for layers, activation, net in cases:
        case: Row = {"data": name, "layers": layers, "activation": activation, "net": net.name}
        line = dict(case)
        for rate in _RATES:
            ends = [_train(net, data, layers, activation, rate, seed) for seed in seeds]
            losses, right = zip(*ends, strict=True)
            loss, least, most = statistics.mean(losses), min(losses), max(losses)
            line[f"lr {rate:g}"] = f"{loss:.3f} ({least:.3f} to {most:.3f})"
            spread = {"loss": loss, "least": least, "most": most}
            rows.append(case | {"rate": rate} | spread | {"accuracy": statistics.mean(right)})
        table.append(line)
    show(f"{_STEPS} steps on {name}, held-out loss, seeds: {len(seeds)}", table)
    results.append("gain", rows)
