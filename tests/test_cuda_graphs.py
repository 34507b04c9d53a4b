"""A training step as one CUDA graph (docs/cuda-graphs.md), and tables of addresses under capture."""

import copy
import weakref

import pytest
import torch
from torch import nn

import projunn
from projunn.nn import UnitaryRNN
from projunn.optim import RMSprop, parts
from projunn_kernels import fused_step_


@pytest.mark.requires_cuda
@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
def test_replays_train_as_steps_do(kind):
    rnn = UnitaryRNN(3, 40, dtype=kind).cuda()
    head = nn.Linear(40, 5).cuda()
    twins = copy.deepcopy((rnn, head))
    batches = [
        (torch.randn(20, 8, 3, device="cuda"), torch.randint(5, (8,), device="cuda")) for _ in range(6)
    ]
    static_x, static_y = (t.clone() for t in batches[0])

    def stepper(rnn, head):
        parameters = [*rnn.parameters(), *head.parameters()]
        optimizer = RMSprop(parameters, lr=1e-3, capturable=True)

        def step():
            optimizer.zero_grad(set_to_none=True)
            output, _ = rnn(static_x)
            loss = nn.functional.cross_entropy(head(output[-1].real), static_y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    step, eager = stepper(rnn, head), stepper(*twins)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for _ in range(3):
        eager()
    for x, y in batches:
        static_x.copy_(x)
        static_y.copy_(y)
        graph.replay()
        torch.testing.assert_close(loss, eager(), atol=1e-4, rtol=1e-4)
    weight = projunn.matrix_view(rnn.weight_hh_l0)
    assert projunn.unitarity_defect(weight).item() < 1e-5


@pytest.mark.requires("triton")
def test_tables_made_under_capture_copy_nothing_from_the_host(monkeypatch):
    """A replay would copy from host memory that has long been freed."""
    from projunn_kernels import keeping
    from projunn_kernels import launching as launch

    tensors = [torch.zeros(3), torch.zeros(4)]
    monkeypatch.setattr(keeping, "capturing", lambda device: True)
    monkeypatch.setattr(torch, "tensor", None)
    kept = len(launch._tables)
    table = launch.address_table(tensors)
    assert table.tolist() == [t.data_ptr() for t in tensors]
    assert len(launch._tables) == kept  # its contents come with a replay: no use to others


@pytest.mark.requires("triton")
def test_tables_that_a_graph_reads_are_never_forgotten(monkeypatch):
    """A replay reads the memory of a table that was there before the capture."""
    from projunn_kernels import keeping
    from projunn_kernels import launching as launch

    tensors = [torch.zeros(3), torch.zeros(4)]
    monkeypatch.setattr(launch, "_tables", keeping.Recent(2))
    monkeypatch.setattr(launch, "_in_graphs", {})
    table = launch.address_table(tensors)
    others = [launch.address_table([torch.zeros(2)]) for _ in range(2)]
    assert launch.address_table(tensors) is not table  # forgotten: no graph has it
    table = launch.address_table(tensors)
    with monkeypatch.context() as patch:
        patch.setattr(keeping, "capturing", lambda device: True)
        assert launch.address_table(tensors) is table
    others += [launch.address_table([torch.zeros(2)]) for _ in range(2)]
    (kept,) = launch._in_graphs.values()
    assert kept is table


@pytest.mark.requires("triton")
def test_a_graph_reads_the_tables_of_steps_on_other_streams(monkeypatch):
    """`torch.cuda.graph` captures on its own: its replays filled all tables again, a launch an entry."""
    from projunn_kernels import keeping, launching

    tensors = [torch.zeros(3), torch.zeros(4)]
    streams = iter([7, 8, 8, 9])
    monkeypatch.setattr(keeping, "current_stream", lambda device: next(streams))
    monkeypatch.setattr(launching, "_tables", keeping.Recent(9))
    monkeypatch.setattr(launching, "_in_graphs", {})
    first = launching.address_table(tensors)
    assert launching.address_table(tensors) is not first  # may be read before it has arrived
    monkeypatch.setattr(keeping, "capturing", lambda device: True)
    assert launching.address_table(tensors[::-1]).tolist() == [t.data_ptr() for t in tensors[::-1]]
    assert launching.address_table(tensors) is first
    assert [*launching._in_graphs.values()] == [first]


@pytest.mark.requires("triton")
def test_counters_that_a_graph_may_have_outlive_what_is_kept_of_a_step(kernels, monkeypatch):
    """A step of other parameters drops that; replays of the graph then counted in memory of others."""
    counters = []

    def noted(step):
        counters.extend(map(weakref.ref, step.missed))
        return fused_step_(step)

    monkeypatch.setattr(parts, "fused_step_", noted)
    weights = [projunn.UnitaryParameter(torch.eye(3).to(kernels.device)) for _ in range(2)]
    optimizer = RMSprop(weights, lr=1e-3, capturable=True)
    with kernels.backend():
        for count in (2, 1):
            optimizer.zero_grad()
            for weight in weights[:count]:
                weight.grad = torch.ones_like(weight.detach())
            optimizer.step()
    assert len(counters) == 3
    assert None not in [counter() for counter in counters]


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("factorization", ["subspace", "single_pass", "tangent"])
def test_a_capture_loads_no_kernel(kernels, monkeypatch, factorization, rank):
    """CUDA refuses to load one meanwhile, so steps before it have to launch all that it launches.

    What that would be is looked at here; nothing runs.
    """
    from projunn_kernels import keeping, launching
    from projunn_kernels.step import launch

    captures, binaries = [False], {False: set(), True: set()}
    for module in (keeping, launch):
        monkeypatch.setattr(module, "capturing", lambda device: captures[0])

    class Noted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda **given: binaries[captures[0]].add(launching._binary_key(self.kernel, given))

    shapes = (6, 6), (40, 40), (140, 140)
    start = [projunn.init.haar_(torch.empty(shape)).to(kernels.device) for shape in shapes]
    weights = [projunn.UnitaryParameter(weight) for weight in start]
    options = {"rank": rank, "factorization": factorization, "polish_every": 4, "capturable": True}
    optimizer = RMSprop(weights, lr=1e-3, **options)
    with launching.intercepted(Noted), kernels.backend():
        for number in range(4):
            captures[0] = number == 3
            for weight in weights:
                weight.grad = torch.randn(weight.shape).to(kernels.device)
            optimizer.step()
    assert binaries[True]
    assert not binaries[True] - binaries[False]
