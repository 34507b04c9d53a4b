"""What our own method can be told: each option of a recurrent layer and its step, one at a time.

The first is the default: RMSprop, rank 1, ``exp``, ``subspace``, dense gradients, and the initialisation
of the task, which is ``henaff``.
"""

from functools import partial
from typing import Any

import torch

from bench.field.contender import Contender
from bench.field.recurrent import RATES, ours


def _choice(name: str, color: str, dashes: str = "-", **options: Any) -> Contender:
    return Contender(name, partial(ours, **options), RATES, color, dashes)


CONTENDERS = (
    _choice("default", "#0b6e99"),
    _choice("cayley retraction", "#d9730d", retraction="cayley"),
    _choice("lsi", "#e0a100", factorization="lsi"),
    _choice("tangent", "#e0a100", "--", factorization="tangent"),
    _choice("sketch of 1 column", "#8f6ac0", sketch_rank=1),
    _choice("sketch of 4 columns", "#8f6ac0", "--", sketch_rank=4),
    _choice("AdamW", "#ad1a72", rule="AdamW", weight_decay=0.0),
    _choice("AdamW, k = 16", "#ad1a72", "--", rule="AdamW", weight_decay=0.0, rank=16),
    _choice("complex", "#7a7a7a", dtype=torch.complex64),
    _choice("identity at the start", "#448361", initial="identity"),
    _choice("cayley at the start", "#448361", "--", initial="cayley"),
    _choice("haar at the start", "#448361", ":", initial="haar"),
)
