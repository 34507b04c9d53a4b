"""One unitary parameter in one step of an optimizer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projunn.manifold import UnitaryParameter


def capturing(tensor: Tensor) -> bool:
    """True if a CUDA graph is being captured: then the host must not wait for the device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def counter(device: torch.device | str) -> Tensor:
    """A number of steps, 0, of a dtype that counts far whatever the default dtype is."""
    is_double = torch.get_default_dtype() == torch.float64
    return torch.zeros((), dtype=torch.float64 if is_double else torch.float32, device=device)


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
        p = self.parameter
        if "step" not in self.state:
            capturable = on_device or self.group.get("capturable", False)
            self.state["step"] = counter(p.device if capturable else "cpu")
        if "skipped" not in self.state:
            self.state["skipped"] = torch.zeros((), dtype=p.dtype.to_real(), device=p.device)
