"""An optimizer's step as a CUDA graph that captures itself."""

from typing import Any, Protocol

import torch
from torch import Tensor

from projunn.factored import FactoredTensor

_SETTLED = 3  # steps with everything in one place before a capture


class _Graph(Protocol):
    def replay(self) -> None: ...


class CapturedStep:
    """Takes an optimizer's steps, replaying one CUDA graph of them wherever that does the same.

        step = CapturedStep(optimizer)
        step()                           # in the place of optimizer.step()

    A step of small matrices takes the device less time than Python takes to launch it; a replay is one
    call.  The graph reads gradients, parameters and state where they were at its capture.  So every call
    compares their addresses, and the options of the groups, with those of the last one: the step is
    captured once they have stayed for three steps, replayed where they are the captured ones, and taken
    as usual otherwise.  ``optimizer.zero_grad(set_to_none=False)`` keeps gradients in their place; with
    ``set_to_none=True``, the default, PyTorch's allocator mostly does, once training has settled.

    A learning rate that a scheduler changes at every step has to be a tensor on the device: a number
    is part of the graph, and each new one asks for a new capture.  Hooks of ``optimizer.step`` run when
    it is captured and taken, not when it is replayed.

    Args:
        optimizer: one of `projunn.optim` or `torch.optim`, with ``capturable=True`` and all parameters
            on one GPU.

    Attributes:
        captures, replays: how many there have been.

    Raises:
        ValueError: a group without ``capturable=True``, or parameters elsewhere.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.captures, self.replays = 0, 0
        self._graph: _Graph | None = None
        self._captured: tuple[Any, ...] = ()
        self._last: tuple[Any, ...] = ()
        self._stayed = 0
        self._check()

    def __call__(self) -> None:
        """Takes one step."""
        places = self._places()
        if self._graph is not None and places == self._captured:
            self._replay(self._graph)
            return
        self._stayed = self._stayed + 1 if places == self._last else 0
        self._last = places
        if self._stayed < _SETTLED:
            self.optimizer.step()
            self._last = self._places()  # a first step creates state
            return
        self._graph = self._capture()
        self._captured = places
        self.captures += 1
        self._replay(self._graph)

    def _replay(self, graph: _Graph) -> None:
        graph.replay()
        self.replays += 1

    def _check(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        devices = {p.device for p in parameters}
        if len(devices) != 1 or not parameters[0].is_cuda:
            found = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"optimizer: got parameters on {found}, wanted all of them on one GPU")
        for group in self.optimizer.param_groups:
            if not group.get("capturable", False):
                raise ValueError("optimizer: got a group with capturable=False, wanted capturable=True")

    def _capture(self) -> _Graph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.optimizer.step()
        return graph

    def _places(self) -> tuple[Any, ...]:
        """Where a step finds its tensors, and the options of the groups."""
        found: list[Any] = []
        for group in self.optimizer.param_groups:
            for name, value in group.items():
                if name != "params":
                    found.extend(_read(value))
            for p in group["params"]:
                found.append(p.data_ptr())
                found.extend(_addresses(p.grad))
                for value in self.optimizer.state.get(p, {}).values():
                    found.append(value.data_ptr() if isinstance(value, Tensor) else value)
        return tuple(found)


def _read(option: Any) -> list[Any]:
    """What a graph has of an option: the address of a number on a device, and the value of any other."""
    if isinstance(option, tuple | list):
        return [one for each in option for one in _read(each)]
    if isinstance(option, Tensor):
        return [option.data_ptr() if option.is_cuda else option.tolist()]
    return [option]


def _addresses(grad: Tensor | None) -> tuple[Any, ...]:
    """Where the numbers of a gradient lie; of a sparse one, which is not captured, its identity."""
    if grad is None:
        return (None,)
    if isinstance(grad, FactoredTensor):
        return grad.stored_left.data_ptr(), grad.stored_right.data_ptr()
    if grad.layout != torch.strided:
        return (object(),)
    return grad.data_ptr(), grad.stride()
