"""Float32 numbers for tensor cores, which cut off what TF32 does not have.

A number of which bits are cut off is never larger, and 4e-4 smaller on average: so is the norm that a
product with a unitary matrix should keep.  A rounded number is as often larger.
"""

import triton
import triton.language as tl


@triton.jit
def nearest_tf32(x):
    """The nearest number of 11 bits, with ties away from zero; some NaN become zero."""
    bits = x.to(tl.int32, bitcast=True) + 0x1000
    return (bits & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def for_tensor_cores(x, PRECISION: tl.constexpr):
    """x in TF32, if a product is; NaN stays NaN."""
    if PRECISION == "tf32":
        x = tl.where(x == x, nearest_tf32(x), x)
    return x
