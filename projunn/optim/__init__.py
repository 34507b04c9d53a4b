"""Optimizers for models with unitary parameters.

They take all of ``model.parameters()``.  A `projunn.UnitaryParameter` gets a low-rank step that keeps it
unitary, and every other parameter the plain step of the rule: that of `torch.optim`, or the published
one for `Lion`, which `torch.optim` lacks.  ``base.py`` has what the rules share; each rule has a file.
`SGDG` takes plain parameters that their user knows to be orthogonal, and `Isospectral` any matrices,
whose singular values it keeps.
"""

from projunn.optim.adamw import AdamW
from projunn.optim.captured import CapturedStep
from projunn.optim.isospectral import Isospectral
from projunn.optim.lion import Lion
from projunn.optim.rmsprop import RMSprop
from projunn.optim.sgd import SGD
from projunn.optim.sgdg import SGDG

__all__ = ["SGD", "SGDG", "AdamW", "CapturedStep", "Isospectral", "Lion", "RMSprop"]
