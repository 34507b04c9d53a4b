"""Runs functions of `tests.distributed.scenarios` in several processes that talk over gloo."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def run(world: int, folder: Path, *names: str) -> dict[str, list]:
    """What each scenario returned on each rank, or its exception: lists over the ranks, by name."""
    # A file for them to meet at, and the loopback device: no network is needed.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    command = [sys.executable, "-m", "tests.distributed.scenarios", str(folder), str(world)]
    jobs = [subprocess.Popen([*command, str(r), *names], env=environment) for r in range(world)]
    try:
        for _ in range(1200):  # two minutes, and no longer than the first that fails
            codes = [job.poll() for job in jobs]
            if None not in codes or any(codes):
                break
            time.sleep(0.1)
        assert codes == [0] * world
    finally:
        for job in jobs:
            job.kill()
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
    return {name: [results[name] for results in found] for name in names}
