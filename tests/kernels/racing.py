"""A kernel whose programs race, for `test_programs`."""

import triton
import triton.language as tl


@triton.jit
def neighbours_kernel(numbers, BARRIER: tl.constexpr, B: tl.constexpr):
    at = numbers + tl.program_id(0) * B + tl.arange(0, B)
    tl.store(at, tl.load(at + B) + 1.0)
    if BARRIER:
        tl.debug_barrier()
    tl.store(at + 2 * B, tl.load(at))
