"""Networks of norm-preserving convolutions; each can be built of plain ones too, to compare with."""

from projunn.models.cayley import CayleyConv2d
from projunn.models.deep import DeepConvNet
from projunn.models.layers import CONVOLUTIONS
from projunn.models.lipschitz import LipschitzConvNet
from projunn.models.resnet9 import ResNet9

__all__ = ["CONVOLUTIONS", "CayleyConv2d", "DeepConvNet", "LipschitzConvNet", "ResNet9"]
