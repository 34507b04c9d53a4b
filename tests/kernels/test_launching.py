"""A launch asks Triton for its binary once."""

import contextlib
import importlib
import inspect
import itertools
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("triton")

import projunn
from projunn_kernels import keeping, launching, private
from projunn_kernels.backends import TooManyPrograms
from projunn_kernels.batches import within_reach
from projunn_kernels.keeping import Recent, constant
from projunn_kernels.launching import Launch, Matrices, addresses_of_flat, launch
from projunn_kernels.operation import OPERATIONS
from projunn_kernels.rules import launch as rules_launch
from projunn_kernels.step import launch as step_launch

STREAM = 7


class Binary:
    """As Triton returns it: it runs on a grid of three sizes, a stream, handles and arguments."""

    packed_metadata, function = ("metadata",), "function"

    def __init__(self, made):
        self.made = made

    def run(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *values):
        assert (stream, function, metadata) == (STREAM, self.function, self.packed_metadata)
        assert launch_metadata is enter is leave is None
        self.made.append(((x, y, z), values))


class OtherBinary(Binary):
    """Of a Triton whose launcher takes other arguments."""

    def run(self, grid, *values):
        raise TypeError("arguments")

    def __getitem__(self, grid):
        return lambda *values: self.made.append((grid, values))


class Jitted:
    """A kernel, as far as a launch sees it, that counts how often Triton is asked for its binary."""

    arg_names = ("x", "rate", "n", "BN")

    def __init__(self, binary=Binary):
        self.asked, self.made, self.binary = 0, [], binary

    def __getitem__(self, grid):
        def run(*, x, rate, n, BN, num_warps):
            self.asked += 1
            self.made.append(((*grid, 1, 1)[:3], (x, rate, n, BN)))
            return self.binary(self.made)

        return run


@pytest.fixture
def kernel(monkeypatch):
    return jitted(monkeypatch)


def jitted(monkeypatch, *binary):
    monkeypatch.setattr(launching, "_binaries", {})
    monkeypatch.setattr(private, "current_raw_stream", lambda: STREAM)
    return Jitted(*binary)


def test_the_same_launch_asks_once(kernel):
    x, y = torch.zeros(8), torch.ones(8)
    launch(kernel, (4,), x=x, rate=0.5, n=8, BN=16, num_warps=4)
    launch(kernel, (5, 2), x=y, rate=0.25, n=8, BN=16, num_warps=4)
    assert kernel.asked == 1
    (_, first), (grid, second) = kernel.made
    assert grid == (5, 2, 1)
    assert first[0] is x
    assert second[0] == y.data_ptr()
    assert second[1:] == (0.25, 8, 16)


@pytest.mark.parametrize(
    "other",
    [{"n": 1}, {"BN": 32}, {"num_warps": 8}, {"x": torch.zeros(9)[1:]}, {"x": torch.zeros(8).half()}],
    ids=str,
)
def test_what_triton_compiles_anew_for_is_another_binary(kernel, other):
    """A size, a constant, an option, another alignment, another dtype."""
    arguments = {"x": torch.zeros(8), "rate": 0.5, "n": 8, "BN": 16, "num_warps": 4}
    launch(kernel, (4,), **arguments)
    launch(kernel, (4,), **arguments | other)
    assert kernel.asked == 2


def test_a_kept_launch_takes_other_tensors(kernel):
    x, y = torch.zeros(8), torch.ones(8)
    run = Launch(kernel, (4,), x=x, rate=0.5, n=8, BN=16, num_warps=4)
    for tensor, rate in ((x, 0.5), (y, 0.25), (x, 1.0)):
        run(x=tensor, rate=rate)
    assert kernel.asked == 1
    assert kernel.made[0] == ((4, 1, 1), (x, 0.5, 8, 16))
    assert kernel.made[1:] == [
        ((4, 1, 1), (y.data_ptr(), 0.25, 8, 16)), ((4, 1, 1), (x.data_ptr(), 1.0, 8, 16))
    ]  # fmt: skip


def test_a_kept_launch_holds_on_to_none_of_the_tensors_of_its_calls(kernel):
    run = Launch(kernel, (4,), x=torch.zeros(8), rate=0.5, n=8, BN=16, num_warps=4)
    run()
    y = torch.ones(8)
    gone = weakref.ref(y)
    run(x=y)
    del y
    kernel.made.clear()
    assert gone() is None


def test_a_launcher_that_takes_other_arguments_is_called_as_users_call_it(monkeypatch):
    kernel, x = jitted(monkeypatch, OtherBinary), torch.zeros(8)
    run = Launch(kernel, (4,), x=x, rate=0.5, n=8, BN=16, num_warps=4)
    run()
    run(rate=0.25)
    assert kernel.made[1] == ((4, 1, 1), (x.data_ptr(), 0.25, 8, 16))


def test_a_tensor_that_is_elsewhere_is_refused(kernel, monkeypatch):
    arguments = {"x": torch.zeros(8), "rate": 0.5, "n": 8, "BN": 16, "num_warps": 4}
    launch(kernel, (4,), **arguments)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: -1)  # as if it were the same
    with pytest.raises(ValueError, match="got a tensor on cpu beside others on a GPU"):
        launch(kernel, (4,), **arguments)


def test_a_tensor_on_another_gpu_is_refused(kernel, monkeypatch):
    class Other(torch.Tensor):
        is_cuda, device = True, torch.device("cuda", 1)

        def get_device(self):
            return 1

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    x = torch.zeros(8).as_subclass(Other)
    with pytest.raises(ValueError, match="got a tensor on cuda:1, wanted all on the GPU 0"):
        launch(kernel, (4,), x=x, rate=0.5, n=8, BN=16, num_warps=4)


def test_the_launcher_of_this_triton_takes_these_arguments():
    from triton.backends.nvidia.driver import CudaLauncher

    handles = 0, "function", "metadata", None, None, None
    inspect.signature(CudaLauncher.__call__).bind("self", 4, 1, 1, *handles, "address", 8)


def test_what_has_not_been_used_for_longest_is_forgotten():
    kept = Recent(2)
    first = kept.keep((1,), "first")
    kept.keep((2,), "second")
    assert kept.found((1,)) is first
    kept.keep((3,), "third")
    assert kept.found((2,)) is None
    assert kept.found((1,)) is first
    assert len(kept) == 2


def test_what_is_idle_goes_when_another_comes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(keeping, "monotonic", lambda: now[0])
    kept = Recent(9, idle=60.0)
    for name in ("old", "used"):
        kept.keep((name,), name)
    now[0] += 50
    assert kept.found(("used",)) == "used"
    now[0] += 20
    assert len(kept) == 2  # nothing goes unless another comes
    kept.keep(("new",), "new")
    assert set(kept) == {("used",), ("new",)}
    now[0] += 1000
    kept.keep(("last",), "last")
    assert set(kept) == {("last",)}


def test_threads_may_keep_at_once(monkeypatch):
    """While one looks for the oldest entry, others change which that is."""
    kept, errors, until = Recent(20, idle=60.0), [], time.monotonic() + 0.5
    interval = sys.getswitchinterval()

    def work(name):
        try:
            for number in itertools.count():
                key = (name, number % 50)
                if kept.found(key) is None:
                    kept.keep(key, number)
                if time.monotonic() > until:
                    return
        except (KeyError, RuntimeError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert len(kept) == 20


def test_a_thread_that_compiles_nothing_warms_up_no_graph():
    """PyTorch 2.11 has no manager of graphs for it, and raises if it is asked for one."""
    importlib.import_module("torch._inductor.cudagraph_trees")
    with ThreadPoolExecutor(1) as another:
        asked = another.submit(private.warms_up_a_graph, torch.device("cuda", 0))
    assert asked.result() is False


def test_kernels_read_what_lies_flat():
    x, z = torch.zeros(2, 8, 8), torch.zeros(8, 8, dtype=torch.complex64)
    assert addresses_of_flat([x, x]) == (x.data_ptr(), x.data_ptr())
    assert addresses_of_flat([]) == ()
    assert addresses_of_flat([z]) == (z.data_ptr(),)
    for other in (x.mT, x.flatten()[1:9]):
        assert addresses_of_flat([x, other]) is None
    assert addresses_of_flat([z, z.conj()]) is None


def test_a_longer_grid_than_gpus_take_is_no_launch(kernel):
    for make in (launch, Launch):
        with pytest.raises(TooManyPrograms, match="65535 along its last axes"):
            make(kernel, (2, 65_536), x=torch.zeros(4), rate=0.5, n=4, BN=4, num_warps=1)
    launch(kernel, (65_536, 2), x=torch.zeros(4), rate=0.5, n=4, BN=4, num_warps=1)
    assert len(kernel.made) == 1


def test_larger_matrices_than_kernels_count_are_no_launch():
    """From 2^31 floats on the place of the second matrix was negative, and so were masks of one."""
    large = torch.empty(2, 1 << 16, 1 << 15, device="meta")
    Matrices.of(large[:1])
    Matrices.of(large[:, :-1])
    with pytest.raises(TooManyPrograms, match="matrices of 65536 x 32768 numbers"):
        Matrices.of(large)
    within_reach(large[:1], single=True)
    pairs = torch.empty(1, 1 << 15, 1 << 15, dtype=torch.complex64, device="meta")
    with pytest.raises(TooManyPrograms):
        within_reach(pairs, single=False)


@pytest.mark.parametrize("rank", [1, 2])
def test_more_matrices_than_a_grid_takes_step_by_pytorch(kernels, launches, monkeypatch, rank):
    """Here of 2 programs, for 3 matrices."""
    weights = []
    for most in (65_535, 2):
        monkeypatch.setattr("projunn_kernels.launching.MAX_PROGRAMS", most)
        torch.manual_seed(0)
        weight = projunn.UnitaryParameter(projunn.init.haar_(torch.empty(3, 5, 5)).to(kernels.device))
        optimizer = projunn.optim.RMSprop([weight], lr=0.1, rank=rank)
        before = len(launches)
        for _ in range(2):
            weight.grad = torch.randn(3, 5, 5).to(kernels.device)
            optimizer.step()
        names = {name for name, _ in launches[before:]}
        assert bool({"rule", "rule_product"} & names) == (most > 3)
        assert ("adjoint_product" in names) == (most > 3 and rank == 2)
        weights.append(weight.detach().cpu())
    torch.testing.assert_close(*weights, atol=2e-6, rtol=0)
    assert projunn.unitarity_defect(weights[1]).max() < 1e-6


def test_a_kept_launch_is_safe_in_threads(kernel):
    """The arguments of one call are no other's, though both are under way."""
    run = Launch(kernel, (1,), x=torch.zeros(4), rate=0.5, n=4, BN=4, num_warps=1)
    run()
    before = run._values.copy()
    run(rate=2.0)
    assert run._values == before
    assert kernel.made[-1][1][1] == 2.0


def test_launches_are_made_on_the_gpu_of_their_tensors(monkeypatch):
    """Triton launches to the current GPU, which may be another."""
    seen, current = [], [0]

    class Device(contextlib.AbstractContextManager):
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device.index)

        def __exit__(self, *_):
            current.pop()

    class Somewhere:
        is_cuda, device = True, torch.device("cuda", 1)

        def get_device(self):
            return 1

    operation = OPERATIONS["refresh_basis_"]
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(private, "current_device", lambda: current[-1])
    monkeypatch.setattr("projunn_kernels.operation.uses_triton", lambda tensor: True)
    monkeypatch.setattr("projunn_kernels.operation._note_change", lambda tensors: None)
    monkeypatch.setattr(operation, "fits", lambda **_: True)
    monkeypatch.setitem(operation.__dict__, "_launches", lambda **_: seen.append(current[-1]))
    arguments = dict.fromkeys(operation.mutates)
    operation._carry_out(Somewhere(), None, arguments)
    assert seen == [1]
    assert current == [0]


@pytest.mark.parametrize("warms_up", [False, True])
def test_constants_are_not_made_in_the_memory_of_a_graph(monkeypatch, warms_up):
    """That belongs to a thread, here to this one."""
    makers = []

    @constant
    def number(size, device):
        makers.append(threading.get_ident())
        return torch.full((size,), 1.0)

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(private, "warms_up_a_graph", lambda device: warms_up)
    for _ in range(2):
        assert torch.equal(number(2, torch.device("cuda", 0)), torch.ones(2))
    assert len(makers) == 1
    assert (makers[0] == threading.get_ident()) is not warms_up
    monkeypatch.undo()
    assert number(3, torch.device("cpu")).shape == (3,)
    assert makers[1] == threading.get_ident()


def test_constants_that_a_graph_reads_are_never_forgotten(monkeypatch):
    """A replay reads them where they were at its capture."""
    number = constant(lambda size, device: torch.zeros(1))
    device, capturing = torch.device("cuda", 0), [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    gone = weakref.ref(number(0, device))
    capturing[0] = True
    read = weakref.ref(number(1, device))
    capturing[0] = False
    for size in range(2, 300):
        number(size, device)
    assert gone() is None
    assert read() is not None


@pytest.mark.parametrize("n", [6, 140])
def test_gradients_of_a_bucket_are_stepped_by_kept_launches(kernels, monkeypatch, n):
    """`DistributedDataParallel` puts gradients where their sizes leave them, aligned or not."""
    made = []

    def counted(kind):
        class Counted(kind):
            def __init__(self, *arguments):
                made.append(kind)
                super().__init__(*arguments)

        return Counted

    for module, name in ((step_launch, "Program"), (step_launch, "Passes"), (rules_launch, "Followed")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    results = []
    for offset in (0, 1):
        for module in (step_launch, rules_launch):  # others may have had tensors at these addresses
            monkeypatch.setattr(module, "_kept", Recent(16, idle=60.0))
        torch.manual_seed(0)
        weight = projunn.UnitaryParameter(projunn.init.haar_(torch.empty(n, n)).to(kernels.device))
        optimizer = projunn.optim.RMSprop([weight], lr=0.1)
        bucket = torch.empty(n * n + 4, device=kernels.device)
        grad = bucket[offset : n * n + offset].view(n, n)
        made.clear()
        with kernels.backend():
            for _ in range(3):
                weight.grad = grad.copy_(torch.randn(n, n))
                optimizer.step()
        assert len(made) == (2 if n == 6 else 1)  # passes over D follow the rule themselves
        results.append(weight.detach().cpu())
    assert torch.equal(*results)
