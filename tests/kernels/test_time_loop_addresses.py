"""Once its binary is known, a launch of a time step gets the addresses of the step's tensors."""

import pytest
import torch

pytest.importorskip("triton")

from projunn_kernels import launching, private, selfcheck
from projunn_kernels.precision import matmul_precision
from projunn_kernels.time_loop import launch, stepping
from projunn_kernels.triton_kernels import kernels

STEPS, BATCH, UNITS = 4, 64, 600  # W of 600 units does not fit a multiprocessor


class Noted:
    """In the place of a kernel: it notes what its launches get, by name."""

    def __init__(self, kernel):
        self.arg_names, self.launches = kernel.arg_names, []

    def __getitem__(self, grid):
        def run(**arguments):
            found = {name: arguments[name] for name in self.arg_names}
            self.launches.append(found)
            return Binary(self)

        return run


class Binary:
    packed_metadata, function = (), "function"

    def __init__(self, kernel):
        self.kernel = kernel

    def run(self, *given):
        values = given[len(given) - len(self.kernel.arg_names) :]
        self.kernel.launches.append(dict(zip(self.kernel.arg_names, values, strict=True)))


@pytest.fixture
def noted(monkeypatch):
    monkeypatch.setattr(launching, "_binaries", {})
    monkeypatch.setattr(private, "current_raw_stream", lambda *_: 0)
    stand_ins = {}
    for name in vars(stepping).keys() & kernels().keys():
        stand_ins[name] = Noted(getattr(stepping, name))
        monkeypatch.setattr(stepping, name, stand_ins[name])
    with selfcheck.suspended():
        yield stand_ins


def places(of):
    return [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in of]


@pytest.fixture(params=[False, True], ids=["plain", "resets"])
def resets(request):
    return torch.zeros(STEPS, BATCH, dtype=torch.bool) if request.param else None


def drawn():
    return torch.randn(STEPS, BATCH, UNITS), torch.randn(STEPS, BATCH, UNITS), torch.eye(UNITS)


def assert_alternates(made):
    """What a step writes is what the next one reads, and two places are enough after the first."""
    before, after = ([*places(one[name] for one in made)] for name in ("before", "after"))
    assert before[1:] == after[:-1]
    assert len({*before[1:], *after}) == 2
    assert before[0] not in after


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_forward(noted, resets, precision):
    inputs, (initial, *_), weight = drawn()
    with matmul_precision(precision):
        states = launch.forward(inputs, initial, weight, None, "relu", resets)
    made = noted["recurrence_step_kernel"].launches
    assert places(one["inputs"] for one in made) == places(inputs)
    assert places(one["states"] for one in made) == places(states)
    assert places(one["resets"] for one in made) == places([None] * STEPS if resets is None else resets)
    assert_alternates(made)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_backward(noted, resets, precision):
    grad, states, weight = drawn()
    with matmul_precision(precision):
        by_inputs, *_ = launch.backward(grad, states, weight, None, "relu", resets)
    made = noted["recurrence_step_backward_kernel"].launches
    for name, tensor in {"grad": grad, "states": states, "grad_inputs": by_inputs}.items():
        assert places(one[name] for one in made) == places([*tensor][::-1])
    cuts = [None] * STEPS if resets is None else [resets[-1], *[*resets][:0:-1]]
    assert places(one["resets"] for one in made) == places(cuts)
    assert_alternates(made)
