"""EUNN, unitary matrices made of few rotations (Jing et al., ICML 2017): a baseline to compare with.

``rotations`` applies the layers of rotations and differentiates them, ``layer`` has their angles and the
linear layer, and ``recurrent`` the network over time.
"""

from projunn.models.eunn.layer import EUNNLinear
from projunn.models.eunn.recurrent import EURNN

__all__ = ["EURNN", "EUNNLinear"]
