"""A language model of bytes, small enough to be made and trained in seconds, for the other examples.

    h = E[tokens] + P                       the residual stream, (batch, time, width)
    h = h + Attention(norm(h)),  h = h + MLP(norm(h))       for each block
    logits = norm(h) H^T

`norm` is an RMSNorm, and no layer has a bias, as in the language models of the Llama family.  Texts are
those that every Python brings: its own sources, and the manual of its help system.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BYTES = 128  # ASCII
SOURCES = ("argparse.py", "ast.py", "inspect.py", "tarfile.py", "typing.py", "pathlib.py", "zipfile.py")


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, h: Tensor) -> Tensor:
        split = [
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*split, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Attention and an MLP, each added to the residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attention(self.attention_norm(h))
        return h + self.down(F.silu(self.up(self.mlp_norm(h))))


class TinyTransformer(nn.Module):
    """Tokens (batch, time) to logits (batch, time, BYTES)."""

    def __init__(self, width: int = 128, blocks: int = 2, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(BYTES, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def sources() -> Tensor:
    """Python's own sources, as bytes."""
    folder = Path(argparse.__file__).parent
    return as_bytes("".join((folder / name).read_text() for name in SOURCES if (folder / name).exists()))


def manual() -> Tensor:
    """The manual of Python's help system, in English, as bytes."""
    from pydoc_data.topics import topics

    return as_bytes("".join(topics.values()))


def as_bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8).long()


def batch(text: Tensor, context: int, size: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and those that follow them, each (size, context)."""
    starts = torch.randint(len(text) - context - 1, (size, 1), generator=source)
    windows = text[starts + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def split(text: Tensor) -> tuple[Tensor, Tensor]:
    """The first nine tenths for training, and the rest."""
    return text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """In nats for each byte."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, text: Tensor, context: int, size: int = 512) -> float:
    """The loss on one batch of a text, the same at every call."""
    tokens, targets = batch(text, context, size, torch.Generator().manual_seed(1))
    return cross_entropy(model(tokens), targets).item()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, text: Tensor, context: int, steps: int
) -> float:
    """Steps on random batches of a text, with a rate that falls to zero; returns the seconds taken."""
    source = torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    begun = time.perf_counter()
    for _ in range(steps):
        tokens, targets = batch(text, context, 16, source)
        optimizer.zero_grad()
        cross_entropy(model(tokens), targets).backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - begun
