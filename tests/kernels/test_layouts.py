"""Kernels get the numbers of a tensor, however these lie in memory: every operator is tried."""

import pytest
import torch

from projunn_kernels.operation import OPERATIONS
from tests.kernels.test_transforms_of_operators import ARGUMENTS

pytest.importorskip("triton")


def draw(*shape):
    return torch.randn(shape)


def counters(count):
    return [torch.zeros(())], [torch.zeros(count, dtype=torch.int64)]


LISTED = torch.tensor([3, 0])
# Of arguments that are optional: lists of matrices, and what a time loop may have.
MORE = {
    "factor": lambda: [draw(4, 5, 4), draw(2, 5, 2), LISTED],
    "fused_step_": lambda: [
        *([draw(4, 4, 4)], [draw(2, 4, 4)], [draw(4, 4, 1)], [draw(4, 4, 1)], *counters(4)),
        *(1, torch.tensor(0.1), "exp", False, LISTED),
    ],
    "polish_when_due_": lambda: [
        *([torch.eye(3).repeat(4, 1, 1) + 0.01], [torch.tensor(10)], 10, False),
        [torch.tensor([0, 3, 0, 0])],
    ],
    "rank_update_": lambda: [draw(4, 5, 4), draw(2, 5, 2), draw(2, 4, 2), LISTED],
    "recurrence": lambda: [draw(2, 3, 4), draw(3, 4), draw(4, 4), draw(4), "modrelu", None, None],
    "retract_": lambda: [torch.eye(4).repeat(4, 1, 1), draw(2, 4, 2), draw(2, 4, 2), "exp", LISTED],
}
CASES = [pytest.param(name, ARGUMENTS[name], id=name) for name in ARGUMENTS]
CASES += [pytest.param(name, make, id=f"{name} more") for name, make in MORE.items()]


def apart(tensor):
    """Its rows do not lie side by side; what lies between is no number, and no index."""
    if tensor.ndim == 0:
        return tensor
    beside = torch.nan if tensor.is_floating_point() else 1
    return torch.stack([tensor, torch.full_like(tensor, beside)], 1)[:, 0]


def each(value, change):
    """A copy of an argument, its tensors changed."""
    if isinstance(value, list):
        return [each(entry, change) for entry in value]
    return change(value.clone()) if isinstance(value, torch.Tensor) else value


def single(tensor):
    return tensor.float() if tensor.is_floating_point() else tensor


def tensors_of(value):
    if isinstance(value, list | tuple):
        return [tensor for entry in value for tensor in tensors_of(entry)]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.parametrize(("name", "make"), CASES)
def test_what_is_read_may_lie_anyhow(kernels, name, make):
    operation = OPERATIONS[name]
    given = dict(zip(operation._names, each(make(), single), strict=False))
    found = []
    for change in (torch.clone, apart):
        arguments = {
            key: each(
                each(value, lambda tensor: tensor.to(kernels.device)),
                torch.clone if key in operation.mutates else change,
            )
            for key, value in given.items()
        }
        with kernels.backend(), torch.no_grad():
            result = operation.run(**arguments)
        found.append(tensors_of([result, *map(arguments.get, operation.mutates)]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
