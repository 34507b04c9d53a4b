"""Layers with unitary (complex) and orthogonal (real) weights, to be trained with `projunn.optim`."""

from projunn.nn.block import BlockUnitaryLinear
from projunn.nn.linear import UnitaryLinear
from projunn.nn.modrelu import ModReLU
from projunn.nn.recurrent import UnitaryRNN, UnitaryRNNCell

__all__ = ["BlockUnitaryLinear", "ModReLU", "UnitaryLinear", "UnitaryRNN", "UnitaryRNNCell"]
