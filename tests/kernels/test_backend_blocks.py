"""Whom a choice of the backend is for: a block for its thread or task, a call for the process."""

import asyncio
import random
import threading

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import projunn
from projunn_kernels import backends
from projunn_kernels.backends import chosen_backend
from projunn_kernels.operation import OPERATIONS


@pytest.fixture(autouse=True)
def _process_as_before():
    """Calls of a test hold no longer than the test."""
    before = list(backends._calls)
    yield
    with backends._changing_calls():
        backends._calls[:] = before


def in_thread(function, *arguments):
    """What a function returns on a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments)))
    thread.start()
    thread.join()
    return found[0]


def test_a_block_is_for_its_thread_and_a_call_for_the_process():
    with projunn.backend("torch"):
        assert chosen_backend()[0] == "torch"
        assert in_thread(chosen_backend) == ("auto", "default")
    projunn.backend("torch")
    assert in_thread(chosen_backend) == ("torch", "projunn.backend")
    with projunn.backend("auto"):
        assert in_thread(chosen_backend)[0] == "torch"


def test_no_block_runs_under_the_choice_of_another_thread():
    """Many short blocks on four threads, each nested in another one."""

    def work(seed):
        choose, wrong = random.Random(seed), 0
        for _ in range(200):
            outer, inner = choose.choice(["auto", "torch"]), choose.choice(["auto", "torch"])
            with projunn.backend(outer):
                with projunn.backend(inner):
                    threading.Event().wait(1e-5)
                    wrong += chosen_backend()[0] != inner
                wrong += chosen_backend()[0] != outer
        counts.append(wrong)

    counts = []
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [0] * 4
    assert chosen_backend() == ("auto", "default")


def test_an_object_may_be_entered_again():
    choice = projunn.backend("torch")
    for _ in range(2):
        with choice:
            with choice, projunn.backend("auto"):
                assert chosen_backend()[0] == "auto"
            assert chosen_backend()[0] == "torch"
        assert chosen_backend() == ("auto", "default")


def test_an_object_entered_by_two_threads_at_once_ends_in_each_by_itself():
    choice, inside, leave = projunn.backend("torch"), threading.Event(), threading.Event()

    def other():
        with choice:
            inside.set()
            leave.wait(10)
            return chosen_backend()[0]

    found = []
    thread = threading.Thread(target=lambda: found.append(other()))
    with choice:
        thread.start()
        assert inside.wait(10)
    assert chosen_backend() == ("auto", "default")
    leave.set()
    thread.join()
    assert found == ["torch"]


def test_a_call_between_two_blocks_stays():
    first = projunn.backend("auto")
    projunn.backend("torch")
    with first:
        assert chosen_backend()[0] == "auto"
    assert chosen_backend() == ("torch", "projunn.backend")


def test_a_block_is_for_its_task_of_asyncio():
    async def task(name):
        with projunn.backend(name):
            found = []
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(chosen_backend()[0])
            return found

    async def both():
        return await asyncio.gather(task("torch"), task("auto"))

    assert asyncio.run(both()) == [["torch"] * 3, ["auto"] * 3]


def test_a_generator_that_is_closed_elsewhere_ends_nothing_of_others():
    def generator():
        with projunn.backend("torch"):
            yield

    def start():
        started = generator()
        next(started)
        return started

    started = in_thread(start)
    with projunn.backend("auto"):
        started.close()
        assert chosen_backend()[0] == "auto"


def layers(sketch_rank):
    options = {"sketch_rank": sketch_rank}
    return {
        "linear": (projunn.nn.UnitaryLinear(5, 5, **options), (3, 5)),
        "recurrence": (projunn.nn.UnitaryRNN(3, 5, **options), (4, 2, 3)),
        "convolution": (projunn.nn.UnitaryConv2d(2, 2, 3, **options), (2, 2, 3, 3)),
    }


@pytest.fixture
def paths(monkeypatch):
    """The choice under which each operation runs, where it picks its path: [(operation, backend)]."""
    seen = []
    for operation in OPERATIONS.values():

        def run(tensor, bundle, arguments, operation=operation, usual=operation._run):
            seen.append((operation.name, chosen_backend()[0]))
            return usual(tensor, bundle, arguments)

        monkeypatch.setattr(operation, "_run", run)
    return seen


@pytest.mark.parametrize("sketch_rank", [None, 2], ids=["dense", "sketched"])
@pytest.mark.parametrize("name", ["linear", "recurrence", "convolution"])
@pytest.mark.parametrize("where", ["after the block", "in another block", "on another thread"])
def test_a_backward_has_the_backend_of_its_forward(paths, name, where, sketch_rank):
    layer, shape = layers(sketch_rank)[name]
    paths.clear()
    with projunn.backend("torch"):
        output = layer(torch.randn(shape, requires_grad=True))
        loss = (output[0] if isinstance(output, tuple) else output).square().sum()
    forward = len(paths)
    if where == "in another block":
        with projunn.backend("auto"):
            loss.backward()
    elif where == "on another thread":
        in_thread(loss.backward)
    else:
        loss.backward()
    if (name, sketch_rank) != ("linear", None):  # which is PyTorch's own
        assert len(paths) > forward
    assert not any(choice != "torch" for _, choice in paths)
    assert chosen_backend() == ("auto", "default")


def test_a_second_backward_has_the_backend_of_the_forward_too(paths):
    layer, shape = layers(None)["convolution"]
    x = torch.randn(shape, requires_grad=True)
    with projunn.backend("torch"):
        loss = layer(x).square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    first = len(paths)
    grad.square().sum().backward()
    assert len(paths) > first
    assert {choice for _, choice in paths} == {"torch"}


def test_a_choice_after_the_forward_is_for_what_follows(paths):
    layer, shape = layers(None)["recurrence"]
    loss = layer(torch.randn(shape))[0].square().sum()
    projunn.backend("torch")
    loss.backward()
    assert {choice for _, choice in paths} == {"auto"}


@pytest.mark.parametrize("sketch_rank", [None, 2], ids=["dense", "sketched"])
def test_a_compiled_function_reads_the_choice_in_each_call(paths, sketch_rank):
    layer, shape = layers(sketch_rank)["recurrence"]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_autograd(fw_compiler=lambda g, _: make_boxed_func(g))(graph, inputs)

    compiled = torch.compile(lambda x: layer(x)[0].square().sum(), fullgraph=True, backend=backend)
    for name in ("torch", "auto", "torch"):
        paths.clear()
        with projunn.backend(name):
            compiled(torch.randn(shape)).backward()
        assert {choice for _, choice in paths} == {name}
        assert any("backward" in operation for operation, _ in paths)
    assert len(graphs) == 1


def test_a_block_inside_of_a_compiled_function_leaves_the_graph(paths):
    layer, shape = layers(None)["recurrence"]

    def compiled(**options):
        def function(x):
            with projunn.backend("torch"):
                return layer(x)[0]

        torch._dynamo.reset()
        return torch.compile(function, backend="eager", **options)

    compiled()(torch.randn(shape))
    assert {choice for _, choice in paths} == {"torch"}
    with pytest.raises(
        torch._dynamo.exc.Unsupported, match=r"projunn\.backend: wanted a choice outside"
    ):
        compiled(fullgraph=True)(torch.randn(shape))
