"""Optimizers for models with unitary parameters.

They take all of ``model.parameters()``.  Unitary parameters get a low-rank step that keeps them unitary,
all others the step of the rule in `torch.optim`.  ``base.py`` has what the rules share; each rule has a
file.
"""

from projunn.optim.adamw import AdamW
from projunn.optim.lion import Lion
from projunn.optim.rmsprop import RMSprop
from projunn.optim.sgd import SGD

__all__ = ["SGD", "AdamW", "Lion", "RMSprop"]
