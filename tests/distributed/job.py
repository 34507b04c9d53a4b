"""Runs functions of `tests.distributed.scenarios` in several processes that talk over gloo."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def run(world: int, folder: Path, *names: str) -> dict[str, list]:
    """What each scenario returned on each rank, or its exception: lists over the ranks, by name."""
    # A file for them to meet at, and the loopback device: no network is needed.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    command = [sys.executable, "-m", "tests.distributed.scenarios", str(folder), str(world), *names]
    with subprocess.Popen(command, env=environment, start_new_session=True) as job:
        try:
            assert job.wait(timeout=120) == 0
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
    return {name: [results[name] for results in found] for name in names}
