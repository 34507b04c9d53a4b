"""A kernel with one parameter of each kind."""

import triton
import triton.language as tl

PARAMETERS = (8, 8, 4, 4, 8)  # bytes of x, y, rate, n, large; the others are part of the binary


@triton.jit
def copy_kernel(x, y, rate, n, one, large, FLAG: tl.constexpr, BN: tl.constexpr):
    at = tl.program_id(0) * BN + tl.arange(0, BN)
    value = tl.load(x + at, mask=at < n) * rate + one
    if FLAG:
        value += (large >> 33).to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < n)
