"""Layers with unitary (complex) and orthogonal (real) weights, to be trained with `projunn.optim`."""

from projunn.nn.block import BlockUnitaryLinear
from projunn.nn.convolution import (
    LocalUnitaryConv1d,
    LocalUnitaryConv2d,
    LocalUnitaryConv3d,
    UnitaryConv1d,
    UnitaryConv2d,
    UnitaryConv3d,
    UnitaryConvTranspose1d,
    UnitaryConvTranspose2d,
    UnitaryConvTranspose3d,
)
from projunn.nn.finetuning import (
    OrthogonalFinetuning,
    finetune,
    merge,
    rotation_from_skew,
    skew_from_rotation,
)
from projunn.nn.groupsort import GroupSort, MaxMin
from projunn.nn.linear import UnitaryLinear
from projunn.nn.loss import OffsetCrossEntropyLoss
from projunn.nn.modrelu import ModReLU
from projunn.nn.recurrent import UnitaryRNN, UnitaryRNNCell
from projunn.nn.select import select_blocks

__all__ = [
    "BlockUnitaryLinear",
    "GroupSort",
    "LocalUnitaryConv1d",
    "LocalUnitaryConv2d",
    "LocalUnitaryConv3d",
    "MaxMin",
    "ModReLU",
    "OffsetCrossEntropyLoss",
    "OrthogonalFinetuning",
    "UnitaryConv1d",
    "UnitaryConv2d",
    "UnitaryConv3d",
    "UnitaryConvTranspose1d",
    "UnitaryConvTranspose2d",
    "UnitaryConvTranspose3d",
    "UnitaryLinear",
    "UnitaryRNN",
    "UnitaryRNNCell",
    "finetune",
    "merge",
    "rotation_from_skew",
    "select_blocks",
    "skew_from_rotation",
]
