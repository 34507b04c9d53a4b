"""Optimizers for models with unitary parameters: `torch.optim`'s, plus a low-rank unitary step.

Give one of them ``model.parameters()`` whole.  The class and the data flow of a step are in
``base.py``; each rule is a file of its own.
"""

from projunn.optim.adamw import AdamW
from projunn.optim.lion import Lion
from projunn.optim.rmsprop import RMSprop
from projunn.optim.sgd import SGD

__all__ = ["SGD", "AdamW", "Lion", "RMSprop"]
