"""What the processes of a job do.  Each scenario returns what its test compares."""

import copy
import multiprocessing.connection
import sys
from pathlib import Path

import torch
import torch._dynamo  # which optimizers import at their first step: once, not in every process
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from projunn import constrain, optim, unitary_parameters
from projunn.distributed import reduce_sketches, replicate
from projunn.nn import BlockUnitaryLinear, UnitaryConv2d, UnitaryLinear, UnitaryRNN
from projunn_kernels.sketching import ranks

ROWS, STEPS = 8, 3
RULES = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, rank=2),
    "SGD, svd": lambda p: optim.SGD(p, lr=0.1, rank=2, factorization="svd"),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.02, rank=2),
    "AdamW": lambda p: optim.AdamW(p, lr=0.02, rank=2),
}


class States(nn.Module):
    """The states of a recurrence as the output."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]


def tied(**options):
    layer = UnitaryLinear(6, 6, **options)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 3))


KINDS = {
    "linear": (lambda **o: nn.Sequential(nn.Linear(6, 6), UnitaryLinear(6, 6, **o)), (6,)),
    "complex": (lambda **o: UnitaryLinear(6, 6, dtype=torch.complex128, **o), (6,)),
    "constrained complex": (lambda **_: constrain(nn.Linear(6, 6, dtype=torch.complex128)), (6,)),
    "blocks": (lambda **o: BlockUnitaryLinear(2, 3, num_factors=2, **o), (6,)),
    "rnn": (lambda **o: States(UnitaryRNN(6, 5, 2, batch_first=True, **o)), (4, 6)),
    "complex rnn": (
        lambda **o: States(UnitaryRNN(6, 5, batch_first=True, dtype=torch.complex128, **o)),
        (4, 6),
    ),
    "conv": (lambda **o: UnitaryConv2d(3, 3, 4, **o), (3, 4, 4)),
    "complex conv": (lambda **o: UnitaryConv2d(3, 3, 4, dtype=torch.complex128, **o), (3, 4, 4)),
    "tied": (tied, (6,)),
}


def model(kind, **options):
    torch.manual_seed(0)
    return KINDS[kind][0](**options)


def batches(kind, world, steps=STEPS):
    source = torch.Generator().manual_seed(1)
    shape = (world * ROWS, *KINDS[kind][1])
    numbers = torch.complex128 if kind == "constrained complex" else torch.float64
    return [torch.randn(shape, generator=source, dtype=numbers) for _ in range(steps)]


def loss_of(output):
    weights = torch.linspace(0, 1, output[0].numel(), dtype=torch.float64)
    return (output.abs().square().flatten(1) @ weights).mean()


def values(module):
    return [p.detach().clone() for p in module.parameters()]


def train(run, module, optimizer, inputs):
    for x in inputs:
        optimizer.zero_grad()
        loss_of(run(x)).backward()
        optimizer.step()
    return values(module)


def alone(kind, world, rule="SGD", **options):
    """What one process computes on the whole batches."""
    module = model(kind, **options)
    return train(module, module, RULES[rule](module.parameters()), batches(kind, world))


def parallel(rank, world, kind, rule="SGD", wrap=reduce_sketches, compiled=False, **options):
    ddp = options.pop("ddp", {})
    module = model(kind, **options)
    if rank:  # replicas start from the first rank's weights
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(2)
    module = wrap(module)
    run = torch.compile(module, backend="aot_eager") if compiled else module
    run = DistributedDataParallel(run, **ddp)
    inputs = [x.chunk(world)[rank] for x in batches(kind, world)]
    return train(run, module, RULES[rule](module.parameters()), inputs)


def _untouched(module):
    return module


def joint_batch(rank, world):
    rules = list(RULES)
    return {
        kind: parallel(rank, world, kind, rules[i % len(rules)], sketch_rank=2)
        for i, kind in enumerate(KINDS)
        if kind != "constrained complex"
    }


def dense(rank, world):
    return {
        (kind, view): parallel(rank, world, kind, wrap=_untouched, ddp={"gradient_as_bucket_view": view})
        for kind in ("linear", "complex", "constrained complex", "rnn", "complex conv")
        for view in (False, True)
    }


def compiled(rank, world):
    return parallel(rank, world, "linear", compiled=True, sketch_rank=2)


def not_prepared(rank, world):
    try:
        parallel(rank, world, "linear", wrap=_untouched, sketch_rank=2)
    except TypeError as error:
        return str(error)


def accumulated(rank, world):
    """Two micro-batches, of which only the second is synchronised."""
    module = reduce_sketches(model("linear", sketch_rank=2))
    run = DistributedDataParallel(module)
    optimizer = RULES["SGD"](module.parameters())
    for first, second in zip(*[iter(batches("linear", world, 4))] * 2, strict=True):
        optimizer.zero_grad()
        with run.no_sync():
            loss_of(run(first.chunk(world)[rank])).backward()
        loss_of(run(second.chunk(world)[rank])).backward()
        optimizer.step()
    return values(module)


def empty_on_one_rank(rank, world):
    """The gradient is the mean over the ranks, of which one has nothing."""
    results = {}
    for kind in ("linear", "rnn", "conv", "complex conv"):
        module = reduce_sketches(model(kind, sketch_rank=2))
        run = DistributedDataParallel(module)
        x = batches(kind, world)[0][: 0 if rank else 5]
        (run(x).abs().square().flatten(1) @ torch.ones(run(x[:0]).flatten(1).shape[1])).sum().backward()
        results[kind] = [
            p.grad.to_dense() if hasattr(p.grad, "to_dense") else p.grad for p in module.parameters()
        ]
    return results


def bytes_of_a_step(rank, world):
    """Bytes handed to all-reduce, with and without sketches."""
    n, result = 64, {}
    for sketch_rank in (None, 2):
        torch.manual_seed(0)
        module = reduce_sketches(nn.Sequential(UnitaryLinear(n, n, sketch_rank=sketch_rank)))
        run, count = DistributedDataParallel(module), []

        run.register_comm_hook(None, allreduce_hook)  # which calls dist.all_reduce
        plain = dist.all_reduce

        def counted(tensor, *rest, count=count, plain=plain, **options):
            count.append(tensor.numel() * tensor.element_size())
            return plain(tensor, *rest, **options)

        ranks.dist.all_reduce = counted
        try:
            loss_of(run(torch.randn(5, n))).backward()
        finally:
            ranks.dist.all_reduce = plain
        result[sketch_rank] = count
    return result


def zero(rank, world):
    """Optimizer state sharded over the ranks: dense weights as in one process, sketched ones refused."""
    result = {}
    for sketch_rank in (None, 2):
        module = reduce_sketches(model("linear", sketch_rank=sketch_rank))
        run = DistributedDataParallel(module)
        optimizer = ZeroRedundancyOptimizer(
            module.parameters(), optimizer_class=optim.SGD, lr=0.1, rank=2, factorization="svd"
        )
        inputs = [x.chunk(world)[rank] for x in batches("linear", world)]
        try:
            result[sketch_rank] = train(run, module, optimizer, inputs)
        except TypeError as error:
            result[sketch_rank] = str(error)
    return result


def chain():
    torch.manual_seed(0)
    return nn.Sequential(*(UnitaryLinear(4, 4) for _ in range(20)))


def train_chain(module, optimizer):
    """Two steps, the second without the first layer; the default rates of both, and the weights."""
    source, angles = torch.Generator().manual_seed(1), []
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(module(torch.randn(ROWS, 4, generator=source))).backward()
        optimizer.step()
        angles.append(optimizer.param_groups[0]["default_angle"])
        module[0].weight.requires_grad_(False)
    return angles, values(module)


def zero_of_many(rank, world):
    """The default rate is that of all unitary parameters, not of those that a rank steps."""
    module, options = chain(), {"lr": 1e-3, "rank": 2, "factorization": "svd"}
    parameters = list(module.parameters())
    optimizer = ZeroRedundancyOptimizer(parameters, optimizer_class=optim.AdamW, **options)
    return train_chain(module, optimizer)


def a_group_of_some(rank, world):
    """Each half of the ranks is a job of its own, whose copies and pickles go on."""
    halves = [dist.new_group(range(0, world // 2)), dist.new_group(range(world // 2, world))]
    group = halves[rank // (world // 2)]
    module = copy.deepcopy(reduce_sketches(model("linear", sketch_rank=2), group))
    inputs = [x.chunk(world // 2)[rank % (world // 2)] for x in batches("linear", world // 2)]
    run = DistributedDataParallel(module, process_group=group)
    return train(run, module, RULES["SGD"](module.parameters()), inputs)


def bank(**options):
    torch.manual_seed(0)
    return BlockUnitaryLinear(4, 3, **options)


def sharded_model(kind):
    module = bank() if kind == "bank" else model(kind)
    axis = 1 if kind == "bank" else 0
    fully_shard(module, shard_placement_fn=lambda p: Shard(axis if p.ndim > 2 else 0))
    return module


def _sharded_rule(module):
    return optim.AdamW(module.parameters(), lr=0.02, rank=2, factorization="svd")


def whole(module):
    return [p.full_tensor().detach() for p in module.parameters()]


def _batches_of(kind, world, steps=STEPS):
    if kind != "bank":
        return batches(kind, world, steps)
    source = torch.Generator().manual_seed(1)
    return [torch.randn(8, 12, generator=source) for _ in range(steps)]


def sharded(rank, world):
    """FSDP2 over frequencies and blocks, on parts of the joint batch; all-reduces in optimizer steps."""
    results = {}
    for kind in ("conv", "complex conv", "blocks", "bank"):
        module = sharded_model(kind)
        optimizer = _sharded_rule(module)
        inputs = [x.chunk(world)[rank] for x in _batches_of(kind, world)]
        train(module, module, optimizer, inputs)
        results[kind] = whole(module), optimizer.skipped_steps()
    return results


def sharded_alone(kind, world):
    module = bank() if kind == "bank" else model(kind)
    return train(module, module, _sharded_rule(module), _batches_of(kind, world))


def refused(rank, world):
    """Weights that have no step where they are cut."""
    messages = {}
    made = {
        "rows": fully_shard(UnitaryLinear(6, 6)),
        "sketched": fully_shard(UnitaryConv2d(3, 3, 4, sketch_rank=1)),
        "tensor parallel": parallelize_module(
            constrain(nn.Linear(6, 6)), init_device_mesh("cpu", (world,)), ColwiseParallel()
        ),
    }
    for name, module in made.items():
        try:
            optim.SGD(module.parameters(), lr=0.1)
            messages[name] = "nothing was said"
        except TypeError as error:
            messages[name] = str(error)
    return messages


def replicated(rank, world, device="cpu"):
    """Dense unitary weights on every rank, the rest sharded."""
    with torch.device(device):
        module = model("linear")
    if device == "cpu":
        replicate(module)
    fully_shard(module, ignored_params=set(unitary_parameters(module)))
    if device == "meta":
        options = dcp.state_dict.StateDictOptions(full_state_dict=True)
        own = module.to_empty(device="cpu"), model("linear").state_dict()
        dcp.state_dict.set_model_state_dict(*own, options=options)
        replicate(module)
    optimizer = RULES["SGD, svd"](module.parameters())
    train(module, module, optimizer, [x.chunk(world)[rank] for x in batches("linear", world)])
    return [
        p.full_tensor().detach() if hasattr(p, "full_tensor") else p.detach()
        for p in module.parameters()
    ]


def replicated_from_meta(rank, world):
    return replicated(rank, world, "meta")


def save(rank, world, folder):
    module = sharded_model("conv")
    optimizer = _sharded_rule(module)
    inputs = [x.chunk(world)[rank] for x in batches("conv", 4)]
    train(module, module, optimizer, inputs)
    states = get_state_dict(module, optimizer)
    dcp.save({"model": states[0], "optimizer": states[1]}, checkpoint_id=folder / "checkpoint")
    train(module, module, optimizer, inputs)
    return whole(module)


def load(rank, world, folder):
    """Goes on from the checkpoint of another number of ranks."""
    module = sharded_model("conv")
    optimizer = _sharded_rule(module)
    states = get_state_dict(module, optimizer)
    content = {"model": states[0], "optimizer": states[1]}
    dcp.load(content, checkpoint_id=folder / "checkpoint")
    set_state_dict(
        module, optimizer, model_state_dict=content["model"], optim_state_dict=content["optimizer"]
    )
    train(module, module, optimizer, [x.chunk(world)[rank] for x in batches("conv", 4)])
    return whole(module)


def work(folder, world, rank, names):
    """What the process of a rank does."""
    torch.set_default_dtype(torch.float64)
    store = dist.FileStore(str(Path(folder) / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    results = {}
    for name in names:
        extra = (Path(folder).parent,) if name in ("save", "load") else ()
        results[name] = globals()[name](rank, world, *extra)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(folder, world, *names):
    """A process for each rank, forked from this one, which has imported PyTorch; the exit status."""
    context, world = multiprocessing.get_context("fork"), int(world)
    running = {}
    for rank in range(world):
        process = context.Process(target=work, args=(folder, world, rank, names))
        process.start()
        running[process.sentinel] = process
    while running:
        for sentinel in multiprocessing.connection.wait(running):
            process = running.pop(sentinel)
            process.join()
            if process.exitcode:  # the others would wait for it
                for other in running.values():
                    other.kill()
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
