"""The suite's quick interpreter computes what Triton's does."""

import pytest
import torch

from projunn_kernels import FusedStep, fused_step_
from tests.interpreter import quicken

pytestmark = pytest.mark.interpreter_only


def steps(kernels):
    """What a step in one launch leaves, and what one in several."""
    results = []
    for n, k, kind in ((6, 2, torch.complex64), (132, 1, torch.float32)):
        generator = torch.Generator().manual_seed(0)
        shapes = [(2, n, n), (2, n, n), (2, n, k), (2, n, k)]
        tensors = [torch.randn(shape, dtype=kind, generator=generator) for shape in shapes]
        tensors[0] = torch.linalg.qr(tensors[0])[0].contiguous()
        counters = torch.zeros(()), torch.zeros(2, dtype=torch.int64)
        with kernels.backend():
            fused_step_(FusedStep(*([t] for t in (*tensors, *counters)), 0.05))
        results += tensors
    return results


def test_the_quick_interpreter_computes_the_same_bits(kernels, quick_interpreter):
    quick = steps(kernels)
    quick_interpreter.undo()
    slow = steps(kernels)
    assert quicken(quick_interpreter)
    assert all(map(torch.equal, quick, slow))


def test_what_is_quick_or_unknown_is_left_as_it_is(quick_interpreter):
    from triton.runtime import interpreter

    before = interpreter._get_np_dtype
    assert not quicken(quick_interpreter)
    assert interpreter._get_np_dtype is before
