"""A linear layer with a unitary weight."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from projunn.arguments import check_numbers, check_strided, flag, is_symbolic, positive
from projunn.init import haar_
from projunn.nn.module import UnitaryModule, sketch_of, start_sketch
from projunn.nn.sketched import sketched_linear
from projunn_kernels import pairs, private


class UnitaryLinear(UnitaryModule):
    """``y = x W^T + b`` with a unitary W: used like `torch.nn.Linear`.

    With ``out_features >= in_features``, W^H W = I: without the bias the layer preserves the norm of its
    input (an isometry).  With ``out_features < in_features``, W W^H = I: the rows of W are orthonormal,
    and the layer loses the part of x that is orthogonal to all of them.

    Args:
        in_features: size of the last axis of the input.
        out_features: size of the last axis of the output.
        bias: whether to learn an additive bias.
        device: as in ``torch.nn.Linear``.
        dtype: float32, float64, complex64 or complex128; default: PyTorch's default dtype.
        sketch_rank: rank of sketched gradients (at most min(in_features, out_features) is used), or
            None for dense ones.  With it the backward computes only low-rank factors of the weight's
            gradient (`projunn_kernels.sketch`), ``weight.grad`` is a `projunn.FactoredTensor`, and a
            training step can cost less than that of ``nn.Linear``.  Where the optimizer's ``rank`` is
            larger, steps without momentum have the rank of the sketch; nothing warns of it.
            `projunn.optim.RMSprop` and `projunn.optim.AdamW` estimate their second moments from the
            sketch, and train better with more columns than the step has: ``sketch_rank=4`` for
            ``rank=1``.

    Shape:
        input (*, in_features), output (*, out_features).  A complex layer takes real input too.

    Attributes:
        weight: the `projunn.UnitaryParameter`, (out_features, in_features), with a trailing axis (re,
            im) if complex.  It starts Haar-distributed.
        bias: the bias, (out_features), with a trailing axis (re, im) if complex, or None.  It starts
            uniform in +-1/sqrt(in_features).
        matrix: the weight as real or complex numbers, (out_features, in_features).

    Raises:
        ValueError: sizes or a ``sketch_rank`` that are not positive, or input of another size or device.
        TypeError: ``dtype`` is none of those four, or input of another dtype.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sketch_rank: int | None = None,
    ) -> None:
        super().__init__(dtype)
        self.in_features = positive("in_features", in_features)
        self.out_features = positive("out_features", out_features)
        self.sketch_rank = sketch_rank
        self.weight = self._matrices(out_features, in_features, device=device, sketch_rank=sketch_rank)
        self.bias = self._plain(out_features, device=device) if flag("bias", bias) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        haar_(self.weight)
        start_sketch(self.weight)
        if self.bias is not None:
            bound = self.in_features**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def matrix(self) -> Tensor:
        """The weight as real or complex numbers, (out_features, in_features); a view of it."""
        return self._numbers(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias, is_complex = self.weight, self.bias, self.is_complex
        if not (is_complex or isinstance(input, Tensor)) and is_symbolic(input):
            return functional.linear(input, weight, bias)
        check_numbers("input", input, weight, is_complex, "reals" if is_complex else "nothing")
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise ValueError(f"input: got shape {tuple(input.shape)}, wanted (*, {self.in_features})")
        if is_complex and private.traced_for_onnx():
            offset = None if bias is None else bias.flatten()
            real = functional.linear(pairs.parts(input), pairs.real_matrix(weight), offset)
            return pairs.complex_numbers(real)
        matrix = self._numbers(weight)
        if is_complex and not input.is_complex():
            input = input.to(matrix.dtype)
        offset = None if bias is None else self._numbers(bias)
        start = sketch_of(weight)
        if start is None:
            return functional.linear(input, matrix, offset)
        check_strided("input", input)
        return sketched_linear(input, weight, offset, start)

    def extra_repr(self) -> str:
        kind = ", complex" if self.is_complex or self.weight.is_complex() else ""
        bias = self.bias is not None
        if self.sketch_rank is not None:
            kind += f", sketch_rank={self.sketch_rank}"
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}{kind}"
