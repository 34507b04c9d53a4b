"""Times a launch on the GPU as it is in a training step: warm clocks, cold caches, no host."""

import time
from collections.abc import Callable
from statistics import median

import torch

Run = Callable[[], object]


class Warmth:
    """Keeps the clocks of a GPU up, which fall while it has nothing to do and take a while to rise."""

    WORK, LASTS = 0.3, 0.1  # seconds

    def __init__(self) -> None:
        self._until = float("-inf")

    def ensure(self, work: Run) -> None:
        """Do work for a while, unless there was some a moment ago; ``work`` waits for the GPU."""
        if time.monotonic() > self._until:
            begun = time.monotonic()
            while time.monotonic() - begun < self.WORK:
                work()
        self.keep()

    def keep(self) -> None:
        """Note that the GPU is busy now."""
        self._until = time.monotonic() + self.LASTS


_warmth = Warmth()


def cold_time(run: Run, repetitions: int = 15) -> float:
    """Median milliseconds on the current GPU, from a CUDA graph and with nothing of it in L2.

    The launches are captured once, so that the host's time for them is not in it; before each replay a
    buffer larger than any L2 is overwritten.  The clocks of the GPU are up.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, and fills the tables of addresses
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    square = torch.ones(2048, 2048, device="cuda")
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)]

    def work() -> None:
        for _ in range(10):
            flush.zero_()
            square.mm(square)
        torch.cuda.synchronize()

    _warmth.ensure(work)
    graph.replay()
    for before, after in marks:
        flush.zero_()
        before.record()
        graph.replay()
        after.record()
    torch.cuda.synchronize()
    _warmth.keep()
    return median(before.elapsed_time(after) for before, after in marks)
