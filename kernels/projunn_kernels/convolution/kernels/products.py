"""Products with constant matrices on tensor cores, as exact as PRECISION asks for.

``tf32`` multiplies numbers rounded to 11 bits.  ``tf32x3`` multiplies both halves of a number, what it
is rounded to and the rest, and leaves out the product of the two rests: an error like float32's.
``ieee`` is a product in float32.  All add in float32.

``tl.dot`` knows these three by itself, but it cuts numbers off (`language.tensor_cores`), and halves
its operands for every product and every program: here a number is halved once, and constants are
halved in memory.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tensor_cores import for_tensor_cores, nearest_tf32


@triton.jit
def halves(x, PRECISION: tl.constexpr):
    """x as two numbers whose sum it is, the first of TF32; with ``ieee`` that is x."""
    leading = for_tensor_cores(x, PRECISION)
    if PRECISION == "tf32x3":
        leading = nearest_tf32(x)
    return leading, x - leading


@triton.jit
def constants(table, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):
    """The halves of constants: a table is (2, ROWS, COLUMNS)."""
    at = table + row[:, None] * COLUMNS + column[None, :]
    leading = tl.load(at)
    rest = leading
    if PRECISION != "tf32":
        rest = tl.load(at + ROWS * COLUMNS)
    if PRECISION == "ieee":
        leading += rest
    return leading, rest


@triton.jit
def product(x, x_rest, y, y_rest, PRECISION: tl.constexpr):
    """The product of two matrices that are given by their halves."""
    if PRECISION == "ieee":
        z = tl.dot(x, y, input_precision="ieee")
    elif PRECISION == "tf32":
        z = tl.dot(x, y, input_precision="tf32")
    else:
        z = tl.dot(x_rest, y, input_precision="tf32")
        z = tl.dot(x, y_rest, z, input_precision="tf32")
        z = tl.dot(x, y, z, input_precision="tf32")
    return z


@triton.jit
def both_products(x, x_rest, y, y_rest, PRECISION: tl.constexpr):
    """The products of x with the left and with the right half of the columns of y."""
    z = product(x, x_rest, y, y_rest, PRECISION)
    z = tl.reshape(z, (z.shape[0], 2, z.shape[1] // 2))
    return tl.split(tl.permute(z, (0, 2, 1)))
