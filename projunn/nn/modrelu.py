"""The modReLU activation."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from projunn.arguments import check_numbers, check_strided, on_device, positive, refuse_script, tensor
from projunn.nn.module import kept_real
from projunn_kernels import apply_nonlinearity, pairs, private
from projunn_kernels.time_loop import nonlinearity_of_parts


class ModReLU(nn.Module):
    """``modReLU(z) = z/|z| max(|z| + b, 0)``, with one learned real b per feature.

    It changes the modulus of a number and keeps its phase (the sign of a real number); at z = 0 it is 0.
    Source: Arjovsky, Shah, Bengio, ICML 2016, equation 8.

    Args:
        num_features: size of the last axis of the input.
        device: as in ``torch.nn`` modules.
        dtype: dtype of b, real; default: PyTorch's default dtype.

    Shape:
        input and output (*, num_features), real or complex.

    Attributes:
        bias: b, (num_features,), which starts uniform in +-0.01.  It stays real:
            ``to(torch.complex128)`` makes it float64.

    Raises:
        ValueError: ``num_features`` is not positive, or input of another size or device.
        TypeError: ``dtype`` is not real.
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        num_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = positive("num_features", num_features)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype: got {dtype!r}, wanted a real floating-point dtype")
        bias = on_device(device, lambda: torch.empty(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws b anew, uniform in +-0.01."""
        nn.init.uniform_(self.bias, -0.01, 0.01)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(kept_real(fn), recurse)

    def forward(self, input: Tensor) -> Tensor:
        bias = self.bias
        try:
            if input.shape[-1] != self.num_features:
                self._check(input)
            if input.is_complex() and private.traced_for_onnx():
                found = nonlinearity_of_parts(pairs.parts(input), bias, "modrelu")
                return pairs.complex_numbers(found)
            return apply_nonlinearity(input, bias, "modrelu")
        except (AttributeError, IndexError, RuntimeError, TypeError):  # to say it in our words
            self._check(input)
            raise

    def _check(self, input: Tensor) -> None:
        shape = tuple(tensor("input", input).shape)
        if shape[-1:] != (self.num_features,):
            raise ValueError(f"input: got shape {shape}, wanted (*, {self.num_features})")
        check_numbers("input", input, self.bias, input.is_complex(), "all numbers")
        check_strided("input", input)
        if input.dtype is torch.bool:
            raise TypeError("input: got torch.bool, wanted real or complex numbers")

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}"
