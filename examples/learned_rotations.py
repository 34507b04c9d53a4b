"""Learns a rotation of a language model's residual stream, so that 4 bits are enough for it.

    h -> h R        E -> E R      W -> W R where a layer reads h      W -> R^T W where it writes to h

For every orthogonal R the model computes what it did, because a norm does not see rotations (its gains
are folded into the layers after it first).  Rounded to 4 bits it does not: outlying channels take the
range of all others.  A random Hadamard matrix spreads them evenly, and a learned R is better still.

    python examples/learned_rotations.py
"""

import argparse

import torch
from tiny_transformer import TinyTransformer, evaluate, sources, split, train
from torch import Tensor, nn
from torch.func import functional_call

import projunn
from projunn.optim import SGDG

WRITERS = ("out.weight", "down.weight")  # the layers that write to the residual stream


def rounded(x: Tensor, bits: int) -> Tensor:
    """Each row in equal steps up to its largest entry; the gradient is passed straight through."""
    most = 2 ** (bits - 1) - 1
    size = x.detach().abs().amax(-1, keepdim=True).clamp_min(1e-8) / most
    return x + ((x / size).round() * size - x).detach()


class RoundedLinear(nn.Linear):
    """A linear layer whose weight is rounded to 4 bits; its input is, too, where R rotates it."""

    bits = 4

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(rounded(x, self.bits), rounded(self.weight, 4))


class Rotated(nn.Module):
    """A model with folded norms, in the frame of R and with rounded layers."""

    def __init__(self, model: nn.Module, rotation: Tensor) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.rotation = nn.Parameter(rotation)  # a plain parameter

    def weights(self) -> dict[str, Tensor]:
        """The weights in the frame of R: what is deployed."""
        r, own = self.rotation, dict(self.model.named_parameters())
        matrices = {name: weight for name, weight in own.items() if weight.ndim == 2}
        return {
            name: r.T @ weight if name.endswith(WRITERS) else weight @ r
            for name, weight in matrices.items()
        }

    def forward(self, tokens: Tensor) -> Tensor:
        return functional_call(self.model, self.weights(), (tokens,))


@torch.no_grad()
def fold_norms(model: TinyTransformer) -> None:
    """Moves the gains of norms into the layers that read them."""
    readers: list[tuple[nn.RMSNorm, list[nn.Linear]]] = [(model.norm, [model.head])]
    for block in model.blocks:
        one = block.attention
        readers += [
            (block.attention_norm, [one.query, one.key, one.value]),
            (block.mlp_norm, [block.up]),
        ]
    for norm, layers in readers:
        for layer in layers:
            layer.weight *= norm.weight
        norm.weight.fill_(1.0)


def round_layers(model: TinyTransformer) -> None:
    """Rounds the layers in the blocks; embeddings and the head stay as they are."""
    for name, layer in model.blocks.named_modules():
        if isinstance(layer, nn.Linear):
            layer.__class__ = RoundedLinear
            layer.bits = 8 if f"{name}.weight".endswith(WRITERS) else 4  # R does not reach their input


def hadamard(n: int) -> Tensor:
    """A Hadamard matrix with random signs; n is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / n**0.5 * (torch.randint(2, (n,)) * 2 - 1)


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=128, help="of the model, a power of two")
    parser.add_argument("--training-steps", type=int, default=400, help="of the model")
    parser.add_argument("--steps", type=int, default=120, help="of the rotation")
    parser.add_argument("--rank", type=int, default=16, help="of a step of the rotation")
    options = parser.parse_args()
    torch.manual_seed(0)
    text, held_out = split(sources())

    model = TinyTransformer(options.width)
    # Large models get outlying channels by themselves, in time that this one lacks.
    sizes = 0.1 * (1.5 * torch.randn(options.width)).exp()
    with torch.no_grad():
        model.embedding.weight.mul_(sizes)
        model.position.weight.mul_(sizes)
    adam = torch.optim.AdamW(model.parameters(), lr=5e-3)
    seconds = train(model, adam, text, model.context, options.training_steps)
    losses = {"float32": evaluate(model, held_out, model.context)}
    print(f"a transformer of width {options.width}, trained in {seconds:.0f} s on Python's sources")
    print(f"  loss in float32                     {losses['float32']:.3f} nats a byte")

    fold_norms(model)
    round_layers(model)
    for name, start in (("as it is", torch.eye(options.width)), ("Hadamard", hadamard(options.width))):
        rotated = Rotated(model, start)
        losses[name] = evaluate(rotated, held_out, model.context)
        print(f"  4 bits, {name:27} {losses[name]:.3f}")
    optimizer = SGDG([rotated.rotation], lr=1.5, stiefel=True, rank=options.rank)
    seconds = train(rotated, optimizer, text, model.context, options.steps)
    losses["learned"] = evaluate(rotated, held_out, model.context)
    defect = projunn.unitarity_defect(rotated.rotation.detach()).item()
    print(f"  4 bits, learned rotation            {losses['learned']:.3f}  in {seconds:.0f} s")
    print(f"the rotation is off an orthogonal one by {defect:.0e}")
    return losses


if __name__ == "__main__":
    main()
