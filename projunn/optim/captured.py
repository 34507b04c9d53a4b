"""An optimizer's step as a CUDA graph that captures itself."""

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakMethod

import torch
from torch import Tensor

from projunn.factored import FactoredTensor
from projunn.optim.answers import Answer
from projunn.optim.base import UnitaryOptimizer
from projunn.optim.drift import steps_left

_SETTLED = 3  # steps with everything in one place before a capture


class _Graph(Protocol):
    def replay(self) -> None: ...

    def pool(self) -> Any: ...


class CapturedStep:
    """Takes an optimizer's steps, replaying a CUDA graph of them wherever that does the same.

        step = CapturedStep(optimizer)
        step()                           # in the place of optimizer.step()

    A step of small matrices takes the device less time than Python takes to launch it; a replay is one
    call.  The graph reads gradients, parameters and state where they were at its capture.  So every call
    compares their addresses, and the options of the groups, with those of the last one: the step is
    captured once they have stayed for three steps, replayed where they are the captured ones, and taken
    as usual otherwise.  ``optimizer.zero_grad(set_to_none=False)`` keeps gradients in their place; with
    ``set_to_none=True``, the default, PyTorch's allocator mostly does, once training has settled.

    There are two graphs, in one pool of memory.  One corrects drift where the counters on the device say
    that it is due, and the other does not look.  The other is replayed as long as no polish can be due:
    that number of steps is read after each replay of the first, without waiting for the device, and a
    step that is missed only delays a polish.  So the weights are those of the first graph, bit for bit.

    A learning rate that a scheduler changes at every step has to be a tensor on the device: a number
    is part of the graph, and each new one asks for a new capture.  Hooks of ``optimizer.step`` run in
    steps that are taken as usual, and twice in a capture, but not in replays.

    Args:
        optimizer: one of `projunn.optim` or `torch.optim` that takes ``capturable=True``, with that, and
            with all parameters on one GPU.

    Attributes:
        captures, replays: how many there have been.
        quiet: how many of the replays were those of the graph without drift control.

    Raises:
        ValueError: a group without ``capturable=True``, or parameters elsewhere.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.captures, self.replays, self.quiet = 0, 0, 0
        self._graph: _Graph | None = None
        self._quiet_graph: _Graph | None = None
        self._left: Tensor | None = None  # after a replay: `steps_left`
        self._asked: Answer | None = None
        # Since `_left` was asked for: the number of steps, and which of them may be the first to polish.
        self._since, self._first = 0, 0
        self._captured: tuple[Any, ...] = ()
        self._last: tuple[Any, ...] = ()
        self._stayed = 0
        self._check()
        # PyTorch's own stream is on the GPU that captured first, and graphs on two share no memory.
        self._stream: torch.cuda.Stream | None = None
        # What happens between two replays may change the counters of the steps.
        forget = _without_keeping(self._forget)
        optimizer.register_step_post_hook(forget)
        optimizer.register_load_state_dict_post_hook(forget)

    def __call__(self) -> None:
        """Takes one step."""
        places = self._places()
        if self._graph is not None and places == self._captured:
            self._replay()
            return
        self._stayed = self._stayed + 1 if places == self._last else 0
        self._last = places
        if self._stayed < _SETTLED:
            self.optimizer.step()
            self._last = self._places()  # a first step creates state
            return
        self._left = None
        self._graph, self._quiet_graph = self._capture_both()
        self._captured = places
        self.captures += 1
        self._replay()

    def _replay(self) -> None:
        assert self._graph is not None
        self.replays += 1
        self._since += 1
        if self._asked is not None and self._asked.has_arrived():
            self._first, self._asked = self._asked.read(), None
        if self._quiet_graph is not None and self._since < self._first:
            self.quiet += 1
            self._quiet_graph.replay()
            return
        self._graph.replay()
        if self._left is not None and self._asked is None:
            self._asked, self._since, self._first = Answer(self._left), 0, 0

    def _forget(self, *_: Any) -> None:
        self._asked, self._first = None, 0

    def _capture_both(self) -> tuple[_Graph, _Graph | None]:
        """The graph of a step, and that of one without drift control, if there is any."""
        optimizer = self.optimizer
        if not isinstance(optimizer, UnitaryOptimizer) or steps_left(optimizer._members()) is None:
            return self._capture(optimizer.step), None

        def step() -> None:
            optimizer.step()
            self._left = steps_left(optimizer._members())

        graph = self._capture(step)
        optimizer._polishes = False
        try:
            return graph, self._capture(optimizer.step, graph)
        finally:
            optimizer._polishes = True

    def _check(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        devices = {p.device for p in parameters}
        if len(devices) != 1 or not parameters[0].is_cuda:
            found = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"optimizer: got parameters on {found}, wanted all of them on one GPU")
        for group in self.optimizer.param_groups:
            if not group.get("capturable", False):
                raise ValueError("optimizer: got a group with capturable=False, wanted capturable=True")

    def _capture(self, step: Callable[[], Any], before: _Graph | None = None) -> _Graph:
        """The graph of a step, in the memory of the one before, which is not replayed meanwhile."""
        graph, device = torch.cuda.CUDAGraph(), self.optimizer.param_groups[0]["params"][0].device
        if self._stream is None or self._stream.device != device:
            self._stream = torch.cuda.Stream(device)
        pool = None if before is None else before.pool()
        # By default a capture fails if another thread allocates, as that which pins memory for a
        # `DataLoader` does.
        mode = "thread_local"
        # A capture waits for the current GPU first, which has to be this one.
        with (
            torch.cuda.device(device),
            torch.cuda.graph(graph, pool, self._stream, capture_error_mode=mode),
        ):
            step()
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


def _without_keeping(method: Callable[..., None]) -> Callable[..., None]:
    """A hook that calls a method as long as its object is there, whose graphs hold memory of a GPU."""
    found = WeakMethod(method)

    def hook(*arguments: Any) -> None:
        call = found()
        if call is not None:
            call(*arguments)

    return hook


def _read(option: Any) -> list[Any]:
    """What a graph keeps of an option: the address of a tensor on a GPU, the value of anything else."""
    if isinstance(option, tuple | list):
        return [one for each in option for one in _read(each)]
    if isinstance(option, Tensor):
        return [option.data_ptr() if option.is_cuda else option.tolist()]
    return [option]


def _addresses(grad: Tensor | None) -> tuple[Any, ...]:
    """Where and how the numbers of a gradient lie; of a sparse one, never captured, its identity."""
    if grad is None:
        return (None,)
    if isinstance(grad, FactoredTensor):
        return grad.stored_left.data_ptr(), grad.stored_right.data_ptr(), grad.rank
    if grad.layout != torch.strided:
        return (object(),)
    return grad.data_ptr(), grad.stride()
