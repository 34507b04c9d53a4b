"""What a module knows of each of its unitary parameters."""

from dataclasses import dataclass

from projunn.factored import FactoredTensor


@dataclass
class Slot:
    """What a module knows of one of its unitary parameters.

    ``said`` is set once the user has been told that the weight is off the manifold, and ``kept`` once an
    optimizer of ours steps it.  ``version`` counts the changes in place of the weight until the last
    ``eval()``, as PyTorch counts them.
    """

    pairs: bool
    blocks: int
    sketch: FactoredTensor | None
    said: bool = False
    kept: bool = False
    singletons: int = 0
    version: int = -1
