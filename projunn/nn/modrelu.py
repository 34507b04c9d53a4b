"""The modReLU activation."""

import torch
from torch import Tensor, nn

from projunn.nn.module import positive
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
        bias: b, (num_features,), which starts uniform in +-0.01.

    Raises:
        ValueError: ``num_features`` is not positive.
    """

    def __init__(
        self,
        num_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = positive("num_features", num_features)
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws b anew, uniform in +-0.01."""
        nn.init.uniform_(self.bias, -0.01, 0.01)

    def forward(self, input: Tensor) -> Tensor:
        if input.is_complex() and private.traced_for_onnx():
            found = nonlinearity_of_parts(pairs.parts(input), self.bias, "modrelu")
            return pairs.complex_numbers(found)
        return apply_nonlinearity(input, self.bias, "modrelu")

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}"
