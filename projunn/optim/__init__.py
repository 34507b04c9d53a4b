"""Optimizers for models with unitary parameters.

They take all of ``model.parameters()``.  A `projunn.UnitaryParameter` gets a low-rank step that keeps it
unitary, and every other parameter the plain step of the rule: that of `torch.optim`, or the published
one for `Lion`, which `torch.optim` lacks.  ``base.py`` has what the rules share; each rule has a file.
"""

from projunn.optim.adamw import AdamW
from projunn.optim.captured import CapturedStep
from projunn.optim.lion import Lion
from projunn.optim.rmsprop import RMSprop
from projunn.optim.sgd import SGD

__all__ = ["SGD", "AdamW", "CapturedStep", "Lion", "RMSprop"]
