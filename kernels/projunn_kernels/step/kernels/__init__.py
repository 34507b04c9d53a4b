"""A step of rank 1: of small matrices in one program, and two passes of medium ones."""

from projunn_kernels.step.kernels.plane import plane_step_kernel
from projunn_kernels.step.kernels.rows import plane_rows_kernel, unit_product_kernel

__all__ = ["plane_rows_kernel", "plane_step_kernel", "unit_product_kernel"]
