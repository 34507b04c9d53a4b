"""Bytes and time of a data-parallel step, dense and sketched, over gloo on this machine.

A model of two unitary layers of n x n, 64 rows a rank, SGD, and the same steps of one process on the
joint batch.  Recorded are, for each rank, the bytes that it hands to all-reduce in a step and the median
time of a step; the largest difference of a weight from that of one process after all steps, beside the
largest change of one; and whether the replicas are equal bit for bit.  All ranks share the cores of one
machine, and the loopback device is no network: the bytes tell what a real one would do.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from bench.records import Results, Row
from projunn.distributed import reduce_sketches
from projunn.nn import UnitaryLinear
from projunn.optim import SGD

ROWS, STEPS = 64, 10
SKETCH_RANKS = (None, 1, 4)


def run(results: Results, quick: bool = False) -> None:
    """Run every job, print, record."""
    rows: list[Row] = []
    for n in (256,) if quick else (512, 2048):
        for world in (2,) if quick else (2, 4):
            rows += _job(n, world)
    results.report("data_parallel", "A data-parallel step over gloo, one machine", rows)


def _job(n: int, world: int) -> list[Row]:
    """The rows of one size and number of ranks."""
    root = Path(__file__).parents[1]
    paths = [str(root), str(root / "kernels"), *sys.path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.bench_data_parallel", folder, str(n), str(world)]
        jobs = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(world)]
        if any(job.wait() for job in jobs):
            raise RuntimeError(f"a rank of {world} failed")
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
    rows = []
    for sketch_rank in SKETCH_RANKS:
        own = [ranks[str(sketch_rank)] for ranks in found]
        alone = _train(_model(n, sketch_rank), None, [_batch(n, world, i) for i in range(STEPS)])[
            "weights"
        ]
        weights = own[0]["weights"]
        gap = max(float((p - q).abs().max()) for p, q in zip(weights, alone, strict=True))
        change = max(
            float((p - q.detach()).abs().max())
            for p, q in zip(weights, _model(n, sketch_rank).parameters(), strict=True)
        )
        equal = all(torch.equal(p, q) for o in own for p, q in zip(weights, o["weights"], strict=True))
        times = sorted(own[0]["times"])
        rows.append(
            {
                "n": n,
                "ranks": world,
                "sketch_rank": sketch_rank,
                "bytes_a_step": own[0]["bytes"] // STEPS,
                "median_ms": round(1e3 * times[len(times) // 2], 2),
                "difference": f"{gap:.1e}",
                "change": f"{change:.1e}",
                "replicas_equal": equal,
            }
        )
    return rows


def _model(n: int, sketch_rank: int | None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        UnitaryLinear(n, n, sketch_rank=sketch_rank),
        nn.Tanh(),
        UnitaryLinear(n, n, sketch_rank=sketch_rank),
    )


def _batch(n: int, world: int, step: int) -> Tensor:
    return torch.randn(world * ROWS, n, generator=torch.Generator().manual_seed(step))


def _train(model: nn.Module, wrapped: nn.Module | None, batches: list[Tensor]) -> dict[str, list]:
    optimizer = SGD(model.parameters(), lr=0.1)
    scale, times = torch.linspace(0, 1, batches[0].shape[1]), []
    for x in batches:
        begin = time.perf_counter()
        optimizer.zero_grad()
        ((wrapped or model)(x).square() @ scale).mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    return {"weights": [p.detach() for p in model.parameters()], "times": times[2:]}


def _rank(folder: str, n: int, world: int, rank: int) -> None:
    """What one process does: every kind of gradient, one after the other."""
    store = dist.FileStore(str(Path(folder) / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    plain, count = dist.all_reduce, [0]

    def counted(tensor: Tensor, *rest: object, **options: object) -> object:
        count[0] += tensor.numel() * tensor.element_size()
        return plain(tensor, *rest, **options)

    dist.all_reduce = counted  # the sketches' and, through this hook, the buckets'
    found = {}
    for sketch_rank in SKETCH_RANKS:
        model = reduce_sketches(_model(n, sketch_rank))
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(None, allreduce_hook)
        count[0] = 0
        batches = [_batch(n, world, step).chunk(world)[rank] for step in range(STEPS)]
        found[str(sketch_rank)] = _train(model, wrapped, batches) | {"bytes": count[0]}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank(sys.argv[1], *(int(value) for value in sys.argv[2:]))
