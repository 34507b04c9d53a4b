"""Recurrent layers with a unitary hidden-to-hidden weight.

``layer`` has their parameters and one pass through time, ``stack`` and ``cell`` the two modules;
``sequences`` says which rows of a tensor are which time steps, and ``chunks`` recomputes states in the
backward to save memory.
"""

from projunn.nn.recurrent.cell import UnitaryRNNCell
from projunn.nn.recurrent.stack import UnitaryRNN

__all__ = ["UnitaryRNN", "UnitaryRNNCell"]
