"""One unitary parameter in one step of an optimizer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projunn.manifold import UnitaryParameter


def capturing(tensor: Tensor) -> bool:
    """True if a CUDA graph is being captured: then the host must not wait for the device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class Member:
    """A unitary parameter that has a gradient.

    Attributes:
        index: its number among all parameters of the optimizer.
        parameter, grad: the parameter and its gradient: dense, sparse or a `projunn.FactoredTensor`.
        state: its state in the optimizer.
        group: the options of its parameter group.
    """

    index: int
    parameter: UnitaryParameter
    grad: Tensor
    state: dict[str, Any]
    group: dict[str, Any]

    def start_counting(self, on_device: bool = False) -> None:
        """Create the counters where they are missing: steps, and steps of matrices not taken."""
        if "step" not in self.state:
            p = self.parameter
            capturable = on_device or self.group.get("capturable", False)
            self.state["step"] = torch.zeros((), device=p.device if capturable else "cpu")
            self.state["skipped"] = torch.zeros((), dtype=p.dtype.to_real(), device=p.device)
