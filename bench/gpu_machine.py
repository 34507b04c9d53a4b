"""Where ``make gpu`` runs: on the GPU, or, for a dry run, on the CPU in its place."""

import time
from collections.abc import Callable
from statistics import median

import torch

import projunn

Step = Callable[[], object]


class Machine:
    """The device, its clock and its graphs.

    Args:
        dry: every stage at tiny sizes on the CPU: kernels in Triton's interpreter, a wall clock for CUDA
            events, steps that are run for graphs that are replayed.  It says that the script works, and
            its times mean nothing.  The process has to be started with ``TRITON_INTERPRET=1``.
    """

    def __init__(self, *, dry: bool) -> None:
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.kernels = "interpret" if dry else "triton"  # the backend that runs them
        self.compiler = "eager" if dry else "inductor"
        if dry:
            projunn.backend("interpret")
            torch.set_num_threads(1)  # the tensors are tiny

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Give memory that PyTorch keeps back to the driver."""
        if not self.dry:
            torch.cuda.empty_cache()

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

    def cold_time(self, run: Step) -> float:
        """Milliseconds of ``run`` with nothing of it in cache (see `projunn_kernels.tuning.timing`)."""
        if self.dry:
            started = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - started)
        from projunn_kernels.tuning.timing import cold_time

        return cold_time(run)

    def step_time(self, step: Step, seconds: float) -> float:
        """Median milliseconds of up to 20 steps after two for warm-up, waiting for each.

        A training loop's pace; no more than ``seconds`` if there were three.
        """
        for _ in range(2):
            step()
        self.wait()
        taken, begun = [], time.perf_counter()
        while len(taken) < 3 or (len(taken) < 20 and time.perf_counter() - begun < seconds):
            started = time.perf_counter()
            step()
            self.wait()
            taken.append(1e3 * (time.perf_counter() - started))
        return median(taken)

    def leave_out(self, what: str, error: Exception) -> None:
        """Says that a case failed and is left out; on a dry run it is a mistake, and raised."""
        if self.dry:
            raise error
        print(f"{what}: {type(error).__name__}: {error}")
