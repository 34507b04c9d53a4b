"""Numbers on a device that are asked for now, and read later, when nobody has to wait for them."""

from typing import Any

import torch
from torch import Tensor


class Answer:
    """The numbers that a tensor holds now, on their way to the host.

    Attributes:
        on_host: whether it was there from the start.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.on_host = not tensor.is_cuda
        self._here = (
            tensor.clone() if self.on_host else torch.empty_like(tensor, device="cpu", pin_memory=True)
        )
        if not self.on_host:
            self._here.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def has_arrived(self) -> bool:
        """Whether `read` would not wait."""
        return self.on_host or self._event.query()

    def read(self) -> Any:
        """The numbers, in lists."""
        if not self.on_host:
            self._event.synchronize()
        return self._here.tolist()
