"""What may be kept from call to call, and for how long."""

import math
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial, wraps
from threading import RLock
from time import monotonic
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from projunn_kernels import private, selfcheck
from projunn_kernels.backends import TooManyPrograms
from projunn_kernels.configs import choice

IDLE = 60.0  # seconds, of launches that hold memory (`Recent`)

_Prepared = TypeVar("_Prepared")
_Arguments = ParamSpec("_Arguments")


class Recent(OrderedDict[tuple[Any, ...], _Prepared]):
    """A cache of what was prepared, by what it was prepared for, which keeps the entries last used.

    Its methods may be called by several threads at once.

    Args:
        most: how many entries it keeps.
        idle: seconds without use, after which an entry goes when another one comes.  An entry that
            holds memory of its own would otherwise outlive the tensors that it was prepared for.
    """

    def __init__(self, most: int, idle: float = math.inf) -> None:
        super().__init__()
        self._most, self._idle = most, idle
        self._used: dict[tuple[Any, ...], float] = {}
        self._refused: dict[tuple[Any, ...], Exception] = {}
        self._lock = RLock()

    def found(self, key: tuple[Any, ...]) -> _Prepared | None:
        """The entry, which counts as used now, or None."""
        with self._lock:
            value = self.get(key)
            if value is not None:
                self._used[key] = monotonic()
                self.move_to_end(key)
        return value

    def first_beside(self, key: tuple[Any, ...], place: int) -> _Prepared | None:
        """The least recently used entry whose key differs from ``key`` at ``place`` alone, or None."""
        rest = key[:place], key[place + 1 :]
        with self._lock:
            alike = (value for k, value in self.items() if (k[:place], k[place + 1 :]) == rest)
            return next(alike, None)

    def keep(self, key: tuple[Any, ...], value: _Prepared) -> _Prepared:
        """Adds an entry, and forgets those that have not been used for longest."""
        with self._lock:
            self[key] = value
            self._used[key] = now = monotonic()
            while len(self) > self._most or now - self._used[next(iter(self))] > self._idle:
                self.forget(next(iter(self)))
        return value

    def made(self, key: tuple[Any, ...], make: Callable[[], _Prepared]) -> _Prepared:
        """The entry, or what ``make`` returns, which is added.

        Raises:
            Distrusted, TooManyPrograms: ``make`` raised it, now or earlier.  It is not called again for
                this key while the verdicts on kernels stay, because a step would do so each time.
            Unchecked: ``make`` raised it now.
        """
        value = self.found(key)
        if value is not None:
            return value
        question = (selfcheck.generation(), *key)
        refused = self._refused.get(question)
        if refused is not None:
            raise type(refused)(*refused.args)
        try:
            with torch.inference_mode(False):  # whose memory only calls in that mode may write to
                made = make()
            return self.keep(key, made)
        except selfcheck.Unchecked:  # a later step may find memory
            raise
        except (selfcheck.Distrusted, TooManyPrograms) as error:
            if len(self._refused) >= self._most:
                self._refused.clear()
            self._refused[question] = type(error)(*error.args)  # without what its traceback holds
            raise

    def forget(self, key: tuple[Any, ...]) -> _Prepared | None:
        """Takes an entry out; None if there is none."""
        with self._lock:
            self._used.pop(key, None)
            return self.pop(key, None)


def current_stream(device: torch.device) -> int:
    """The stream that launches go to: what lies between two launches must not be shared by streams."""
    return private.current_raw_stream(device.index) if device.type == "cuda" else 0


def may_keep(tensor: Tensor) -> bool:
    """Whether launches may be kept: a graph owns its memory, and checks and tuning need their own."""
    return choice.settled() and not selfcheck.is_checking() and not capturing(tensor.device)


def in_force(tensor: Tensor) -> tuple[int, int]:
    """What kept launches depend on beside tensors and options: the stream and the configurations."""
    # As `current_stream`, without a call of Python: every step comes here.
    stream = private.current_raw_stream(tensor.device.index) if tensor.is_cuda else 0
    return stream, choice.generation()


def capturing(device: torch.device) -> bool:
    """True if a CUDA graph is being captured, or is about to be: what is allocated belongs to it."""
    if device.type != "cuda":
        return False
    return torch.cuda.is_current_stream_capturing() or private.warms_up_a_graph(device)


def sent(host: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to a device; the host waits for it only under a trace or a capture."""
    if device.type != "cuda" or torch.compiler.is_compiling() or capturing(device):
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def outside_of_graphs(make: Callable[[], _Prepared], device: torch.device) -> _Prepared | None:
    """What ``make`` returns, in memory that belongs to no graph; None during a capture, which has none.

    While ``torch.compile`` warms up what it will capture, what this thread allocates belongs to the
    graph.  Another thread then calls ``make``.
    """
    if not capturing(device):
        return make()
    if torch.cuda.is_current_stream_capturing():
        return None
    with ThreadPoolExecutor(1) as another:
        return another.submit(make).result()


def constant(make: Callable[_Arguments, _Prepared]) -> Callable[_Arguments, _Prepared]:
    """Decorates a function that makes constants on a device, one of its arguments, and keeps them.

    It keeps those used last, and those that a graph reads for ever.
    """
    kept = lru_cache(maxsize=256)(make)
    in_graphs: dict[tuple[Any, ...], _Prepared] = {}

    @wraps(make)
    def found(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Prepared:
        (device,) = (value for value in arguments if isinstance(value, torch.device))
        if not capturing(device):
            return kept(*arguments, **options)  # type: ignore[arg-type]
        key = (arguments, *options.items())
        if key not in in_graphs:
            one = partial(kept, *arguments, **options)  # type: ignore[arg-type]
            made = outside_of_graphs(one, device)
            in_graphs[key] = one() if made is None else made
        return in_graphs[key]

    return found


_unread: dict[tuple[torch.Size, torch.device], Tensor] = {}


def unread(counter: Tensor) -> Tensor:
    """A counter like ``counter`` that nobody reads: one for all steps, which graphs replay for ever.

    That of a step would be freed with it, or be filled again in each replay of a graph.
    """
    kind = counter.shape, counter.device
    found = _unread.get(kind)
    if found is None:
        with torch.inference_mode(False):
            found = torch.zeros_like(counter)
        if not (private.is_fake(found) or capturing(counter.device)):
            _unread[kind] = found
    return found
