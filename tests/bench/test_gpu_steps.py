"""The checks of ``make gpu`` that take steps one by one."""

import functools

import pytest
import torch

import projunn

pytest.importorskip("triton")

from bench.gpu import steps
from bench.gpu.machine import Machine
from projunn_kernels.step import launch


@pytest.mark.interpreter_only
def test_a_step_along_the_gradient_of_another_is_noticed(monkeypatch):
    """It leaves the weights unitary."""
    with projunn.backend("auto"):  # making a dry machine chooses the backend of the process
        on = Machine(dry=True)
    tables, table_of = [], launch.table_of
    call = functools.partial(steps.compared, on, "SGD", (2, 5, 5), torch.float32, "rank 1")

    def first(addresses, device):
        tables.append(table_of(addresses, device))
        return tables[0]

    with projunn.backend("interpret"):
        assert call() < 1
        monkeypatch.setattr(launch, "table_of", first)
        assert call() > 100
