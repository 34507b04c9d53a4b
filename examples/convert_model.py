"""Takes over a model that torch.nn.utils.parametrizations.orthogonal keeps orthogonal, and trains on.

A network with orthogonal layers learns what another one with fixed orthogonal layers does.  After half
of the steps `projunn.convert` makes its weights ours: the output stays, and the loss goes on falling in
less time a step.  How much less grows with the size of the layers (``python -m bench convert``).

    python examples/convert_model.py
"""

import argparse
import time

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

import projunn
from projunn.nn import MaxMin


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, teacher: nn.Module, steps: int
) -> tuple[float, float]:
    """The mean loss of the last ten steps, and milliseconds a step."""
    losses, started = [], time.perf_counter()
    for _ in range(steps):
        x = torch.randn(2 * model[0].in_features, model[0].in_features)
        loss = (model(x) - teacher(x)).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:]), 1e3 * (time.perf_counter() - started) / steps


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="features of each layer")
    parser.add_argument("--steps", type=int, default=150, help="before and after the conversion")
    parser.add_argument("--map", default="matrix_exp", choices=("matrix_exp", "cayley", "householder"))
    options = parser.parse_args()
    torch.manual_seed(0)
    n = options.size
    teacher = nn.Sequential(nn.Linear(n, n, bias=False), MaxMin(1), nn.Linear(n, n, bias=False))
    projunn.constrain(teacher, "*").requires_grad_(False)
    layers = [orthogonal(nn.Linear(n, n), orthogonal_map=options.map) for _ in range(2)]
    model = nn.Sequential(layers[0], MaxMin(1), layers[1])
    x = torch.randn(64, n)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before, slow = train(model, optimizer, teacher, options.steps)
    print(f"parametrized: loss {before:.4f}, {slow:.1f} ms a step")
    output = model(x).detach()
    projunn.convert(model)
    change = ((model(x) - output).norm() / output.norm()).item()
    print(f"converted:    its output has changed by {change:.1e} of its norm")
    ours = projunn.optim.SGD(model.parameters(), lr=0.05, unitary_lr=0.05, rank=4)  # made after it
    after, fast = train(model, ours, teacher, options.steps)
    defect = max(projunn.unitarity_defect(w).item() for w in projunn.unitary_parameters(model))
    print(f"ours:         loss {after:.4f}, {fast:.1f} ms a step, unitarity defect {defect:.1e}")
    print("state_dict:  ", ", ".join(model.state_dict()))
    return {"before": before, "after": after, "change": change, "speed-up": slow / fast}


if __name__ == "__main__":
    main()
