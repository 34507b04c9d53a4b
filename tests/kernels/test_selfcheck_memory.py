"""Self-checks that find no memory, which says nothing of a kernel."""

import warnings

import pytest
import torch

from projunn_kernels import rank_update_, selfcheck
from projunn_kernels.configs.closed_form import closed_form
from projunn_kernels.configs.kernel import KERNELS
from projunn_kernels.configs.problem import Device
from projunn_kernels.keeping import Recent
from projunn_kernels.launching import intercepted

pytestmark = pytest.mark.interpreter_only


@pytest.fixture(autouse=True)
def _always(monkeypatch, tmp_path, kernels):
    monkeypatch.setenv("PROJUNN_SELFCHECK", "always")
    monkeypatch.setenv("PROJUNN_CACHE", str(tmp_path))
    selfcheck.forget()
    with kernels.backend():
        yield
    selfcheck.forget()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=lambda error: str(error)[:12],
)
def test_a_kernel_whose_check_finds_no_memory_is_checked_again_and_runs(monkeypatch, error):
    compare, launched, weight = selfcheck.compare, [], torch.zeros(20, 20)

    def full(*_):
        raise error

    class Counting:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            launched.append(self.kernel.__name__)
            return self.kernel[grid]

    def run():
        launched.clear()
        rank_update_(weight, torch.ones(20, 1), torch.ones(20, 1))
        return len(launched)

    with intercepted(Counting):
        monkeypatch.setattr(selfcheck, "compare", full)
        with pytest.warns(RuntimeWarning, match="memory is too full to check .*rank_update real"):
            assert run() == 0
        monkeypatch.setattr(selfcheck, "compare", compare)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            assert run() == 0  # not before the pause is over
            monkeypatch.setattr(selfcheck, "_postponed", {})
            assert run() == 2
            assert run() == 1
    assert torch.equal(weight, torch.full((20, 20), 4.0))


def test_a_graph_gets_what_ran_in_place_of_a_kernel_that_could_not_be_checked(monkeypatch):
    kernel, capturing, full = KERNELS["product"], [False], [True]
    variant, problem = next(kernel.variants_of(kernel.compiled[0])), kernel.compiled[0]

    def check(*_):
        if full[0]:
            raise selfcheck.Unchecked("no memory")
        return selfcheck.Verdict("product", "a GPU", "3.8.0", ""), False

    def ask():
        selfcheck._answers.clear()
        selfcheck._known().clear()
        selfcheck.require(problem, closed_form(problem, Device()), variant, torch.device("cuda", 0))

    monkeypatch.setattr(selfcheck, "_check", check)
    monkeypatch.setattr(selfcheck, "_AGAIN", 0.0)
    monkeypatch.setattr(selfcheck, "device_of", lambda device: Device())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    with pytest.warns(RuntimeWarning, match="memory"), pytest.raises(selfcheck.Unchecked):
        ask()
    capturing[0] = True
    with pytest.raises(selfcheck.Unchecked):
        ask()
    capturing[0] = full[0] = False
    ask()
    capturing[0] = True
    ask()


def test_launches_that_could_not_be_checked_are_prepared_again():
    kept, outcomes = Recent(4), [selfcheck.Unchecked("full"), selfcheck.Distrusted("wrong"), None]

    def make():
        raise outcomes.pop(0)

    for error in ("full", "wrong", "wrong"):
        with pytest.raises(selfcheck.Distrusted, match=error):
            kept.made((), make)
    assert outcomes == [None]
