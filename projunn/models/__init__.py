"""Networks of norm-preserving convolutions, which can be built of plain ones too, and baselines."""

from projunn.models.cayley import CayleyConv2d
from projunn.models.deep import DeepConvNet
from projunn.models.eunn import EURNN, EUNNLinear
from projunn.models.layers import CONVOLUTIONS
from projunn.models.lipschitz import Center, LipschitzConvNet
from projunn.models.resnet9 import ResNet9

__all__ = [
    "CONVOLUTIONS",
    "EURNN",
    "CayleyConv2d",
    "Center",
    "DeepConvNet",
    "EUNNLinear",
    "LipschitzConvNet",
    "ResNet9",
]
