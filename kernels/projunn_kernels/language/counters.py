"""The counters of steps that are not taken.

They are added to atomically, although one program of a launch counts for a matrix: else all its warps
would load a counter, and some of them what the first has stored already.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import pointer


@triton.jit
def count_missed(missed, entry, matrix):
    """One more step that a matrix of a parameter has not taken; ``missed`` is a table of addresses."""
    tl.atomic_add(pointer(missed, entry, tl.int64) + matrix, 1)


@triton.jit
def count_skipped(skipped, entry):
    """One more in all, which the optimizer reports."""
    tl.atomic_add(pointer(skipped, entry, tl.float32), 1.0)
