"""A retraction of large matrices, after the pass over W that made Z = W^H X.

    plane_basis          Q and T = Q F^H of a step of rank 1            one program for each matrix
    basis                the same for 1 < k <= 8                        one for each part of a matrix
    follow, turn         F of a step, k > 8                             one program for each matrix
    begin, small_product, defect    the same as `follow`                one for each block of a matrix
    rotate_rows          W += (W Q) T^H                                 one read and one write of W

Factors are stored column by column, as (k, n) for each matrix, so that a column is one contiguous load,
and go through registers in chunks of BN.  Sums are float64.  A program of `rotate_rows` keeps whole rows
of W in registers where they fit (HOLD).  Where they do not it reads them twice, the second time from
cache.
"""

from projunn_kernels.retraction.kernels.few import basis_kernel, plane_basis_kernel, rotate_rows_kernel
from projunn_kernels.retraction.kernels.many import turn_kernel
from projunn_kernels.retraction.kernels.series import (
    begin_kernel,
    defect_kernel,
    follow_kernel,
    small_product_kernel,
)

__all__ = [
    "basis_kernel",
    "begin_kernel",
    "defect_kernel",
    "follow_kernel",
    "plane_basis_kernel",
    "rotate_rows_kernel",
    "small_product_kernel",
    "turn_kernel",
]
