"""Where ``make gpu`` runs: on the GPU, or, for a dry run, on the CPU in its place."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

import projunn

Step = Callable[[], object]


class Machine:
    """The device, its clock and its graphs.

    Making one touches no device, so that processes can be forked afterwards.

    Args:
        dry: every stage at tiny sizes on the CPU: kernels in Triton's interpreter, a wall clock for CUDA
            events, steps that are run for graphs that are replayed.  It says that the script works, and
            its times mean nothing.  The process has to be started with ``TRITON_INTERPRET=1``.
    """

    def __init__(self, *, dry: bool) -> None:
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.kernels = "interpret" if dry else "auto"  # the backend that users get
        self.compiler = "eager" if dry else "inductor"
        self.capturable = not dry  # the optimizers' option: PyTorch has it on a GPU only
        if dry:
            projunn.backend("interpret")

    def shape(self, *shape: int) -> tuple[int, ...]:
        """A matrix or a bank; on a dry run a small one that takes the same way through the library."""
        if not self.dry:
            return shape
        *batch, m, n = shape
        return (*(3 for _ in batch), *(130 if size > 128 else 5 for size in (m, n)))

    def size(self, size: int, dry: int) -> int:
        """``size``, or ``dry`` on a dry run."""
        return dry if self.dry else size

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Give memory that PyTorch keeps back to the driver."""
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    def sound(self) -> bool:
        """Whether the process can go on after an error.

        A CUDA error stays with its process for good, and a capture that failed may leave PyTorch's
        generator waiting for the end of that capture.
        """
        if self.dry:
            return True
        try:
            torch.cuda.synchronize()
            drawn = torch.rand(4, device=self.device).sum()
            return not torch.cuda.is_current_stream_capturing() and 0 <= drawn.item() <= 4
        except Exception as error:
            print(f"the process cannot go on: {type(error).__name__}: {error}", flush=True)
            return False

    def captured(self, step: Step) -> Step:
        """``step`` as a CUDA graph, as in docs/cuda-graphs.md: three steps are made to warm up."""
        if self.dry:
            step()
            return step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def cold_time(self, step: Step) -> float:
        """Milliseconds of ``step`` as a CUDA graph, with nothing of it in cache (`cold_time`)."""
        if self.dry:
            started = time.perf_counter()
            step()
            return 1e3 * (time.perf_counter() - started)
        from projunn_kernels.tuning import timing

        timing.Warmth.WORK = 0.05  # seconds: making the case has kept the clocks up
        return timing.cold_time(step)

    def step_time(self, step: Step, seconds: float) -> float:
        """Median milliseconds of up to 20 steps after two for warm-up, waiting for each.

        A training loop's pace; no more than ``seconds`` if there were three.
        """
        for _ in range(self.size(2, 0)):
            step()
        self.wait()
        taken, begun, fewest = [], time.perf_counter(), self.size(3, 1)
        while len(taken) < fewest or (len(taken) < 20 and time.perf_counter() - begun < seconds):
            started = time.perf_counter()
            step()
            self.wait()
            taken.append(1e3 * (time.perf_counter() - started))
        return median(taken)

    def issue_time(self, step: Step, seconds: float) -> dict[str, float]:
        """Microseconds a step takes to issue, and to be done with, in a loop that does not wait.

        Medians of five rounds of up to 20 steps.
        """
        if self.dry:
            us = round(1e3 * self.cold_time(step), 1)
            return {"issue_us": us, "total_us": us}
        for _ in range(3):
            step()
        self.wait()
        started = time.perf_counter()
        step()
        self.wait()
        count = max(1, min(20, int(seconds / 5 / (time.perf_counter() - started))))
        issued, whole = [], []
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(count):
                step()
            issued.append(time.perf_counter() - started)
            self.wait()
            whole.append(time.perf_counter() - started)
        return {
            "issue_us": round(1e6 * median(issued) / count, 1),
            "total_us": round(1e6 * median(whole) / count, 1),
        }

    def description(self) -> dict[str, Any]:
        """What is only known once the GPU has been touched, for the head of the summary."""
        if self.dry:
            return {"gpu": "dry run", "capability": "0.0", "memory_gib": 0}
        properties = torch.cuda.get_device_properties(self.device)
        torch.ones(1, device=self.device).add_(1)
        self.wait()
        return {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
        }


@contextmanager
def matmul_precision(setting: str) -> Iterator[None]:
    """``torch.set_float32_matmul_precision``, and the same for cuDNN."""
    before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(setting)
    torch.backends.cudnn.allow_tf32 = setting != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = cudnn
