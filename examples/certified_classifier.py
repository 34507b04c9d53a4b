"""Trains a 1-Lipschitz classifier of handwritten digits whose answers provably hold, and attacks it.

Norm-preserving convolutions and MaxMin cannot enlarge a change of the image.  So an answer whose logit
y_r is ahead of y_j, with rows w_r and w_j of the last layer, holds against every change of 2-norm below
(y_r - y_j) / |w_r - w_j|, and the loss asks for a margin.  The certified accuracy is the share of right
answers that hold; an attack by projected gradients cannot get below it.

    python examples/certified_classifier.py
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import projunn
from projunn.models import LipschitzConvNet
from projunn.nn import OffsetCrossEntropyLoss


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 1, 8, 8) with pixels from 0 to 1 and labels: to train on, and every fifth held out."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(data.target)
    held_out = torch.arange(len(y)) % 5 == 0
    return x[~held_out], y[~held_out], x[held_out], y[held_out]


def attacked(model: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int = 20) -> float:
    """The share of right answers after projected gradient ascent within a ball of the radius."""
    change = torch.zeros_like(x)
    for _ in range(steps):
        change.requires_grad_(True)
        loss = nn.functional.cross_entropy(model(x + change), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, change)
        norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        change = change.detach() + radius / 5 * gradient / norm
        norm = change.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        change = change * (radius / norm).clamp_max(1)
    with torch.no_grad():
        return (model(x + change).argmax(1) == y).float().mean().item()


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    x, y, test_x, test_y = digits()
    mean = x.mean((0, 2, 3), keepdim=True)[0]
    model = LipschitzConvNet(1, 10, 8, width=options.width, last_layer="normalized", mean=mean)
    optimizer = projunn.optim.AdamW(model.parameters(), lr=0.01, unitary_lr=0.01, rank=4)
    loss_of = OffsetCrossEntropyLoss(offset=2**0.5 * 0.5, temperature=0.125)  # to hold up to 0.5
    started = time.perf_counter()
    for _ in range(options.epochs):
        for part in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            loss_of(model(x[part]), y[part]).backward()
            optimizer.step()
    model.eval().requires_grad_(False)
    print(f"trained for {time.perf_counter() - started:.0f} s")
    bound = projunn.lipschitz_bound(nn.Sequential(*list(model)[:-1]))
    radii = [0.0, 0.1, 0.25, 0.5]
    certified = projunn.certified_accuracy(model, [(test_x, test_y)], radii)
    print(f"Lipschitz constant up to the last layer, from the weights: {bound:.6f}")
    print("radius   certified   right under attack")
    found = {"bound": float(bound)}
    for radius, share in zip(radii, certified, strict=True):
        survived = attacked(model, test_x, test_y, radius)
        found[f"certified {radius}"], found[f"attacked {radius}"] = share, survived
        print(f"{radius:6.2f}   {share:9.1%}   {survived:18.1%}")
    return found


if __name__ == "__main__":
    main()
