"""The transforms of `transform` for real signals: products with constant matrices on tensor cores."""

from projunn_kernels.convolution.kernels.planes import plane_inverse_kernel, plane_transform_kernel
from projunn_kernels.convolution.kernels.points import points_inverse_kernel, points_transform_kernel
from projunn_kernels.convolution.kernels.slices import sliced_inverse_kernel, sliced_transform_kernel

__all__ = [
    "plane_inverse_kernel",
    "plane_transform_kernel",
    "points_inverse_kernel",
    "points_transform_kernel",
    "sliced_inverse_kernel",
    "sliced_transform_kernel",
]
