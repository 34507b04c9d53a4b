"""A linear layer whose weight is a product of block-diagonal unitary matrices and shuffles."""

import torch
from einops import rearrange
from torch import Tensor, nn

from projunn.arguments import check_numbers, check_strided, flag, positive
from projunn.init import haar_
from projunn.nn.module import UnitaryModule, sketch_of, start_sketch
from projunn.nn.sketched import sketched_linear
from projunn_kernels import pairs, private


class BlockUnitaryLinear(UnitaryModule):
    """``y = x (B_f P ... B_2 P B_1)^T + b``: block-diagonal unitary factors B with shuffles P.

    Each factor B has ``num_blocks`` unitary matrices of size ``block_size`` on its diagonal, and costs a
    ``num_blocks``-th of a dense layer.  P is the perfect shuffle, from the order (block, position) to
    the order (position, block): it sends the features of each block to the others.  With
    ``num_factors=1`` there is none, and the features of different blocks never mix.  Without the bias
    the layer preserves the norm of its input.

    Args:
        num_blocks: the number of blocks of a factor.
        block_size: the number of rows and columns of a block.
        bias: whether to learn an additive bias.
        num_factors: the number of block-diagonal factors, with a shuffle between each two.
        device, dtype, sketch_rank: as in `projunn.nn.UnitaryLinear`.

    Shape:
        input and output (*, num_blocks block_size).  A complex layer takes real input too.

    Attributes:
        weight: the `projunn.UnitaryParameter`, (num_factors, num_blocks, block_size, block_size), with
            a trailing axis (re, im) if complex.  It starts Haar-distributed.
        bias: the bias, (num_blocks block_size), with a trailing axis (re, im) if complex, or None.  It
            starts uniform in +-1/sqrt(block_size).

    Raises:
        ValueError: sizes or a ``sketch_rank`` that are not positive, or input of another size or device.
        TypeError: ``dtype`` is not float32, float64, complex64 or complex128, or input of another dtype.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        bias: bool = True,
        *,
        num_factors: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sketch_rank: int | None = None,
    ) -> None:
        super().__init__(dtype)
        self.num_blocks = positive("num_blocks", num_blocks)
        self.block_size = positive("block_size", block_size)
        self.num_factors = positive("num_factors", num_factors)
        self.sketch_rank = sketch_rank
        shape = num_factors, num_blocks, block_size, block_size
        self.weight = self._matrices(*shape, device=device, sketch_rank=sketch_rank)
        self.bias = self._plain(num_blocks * block_size, device=device) if flag("bias", bias) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        haar_(self.weight)
        start_sketch(self.weight)
        if self.bias is not None:
            bound = self.block_size**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        features = self.num_blocks * self.block_size
        weight, is_complex = self.weight, self.is_complex
        check_numbers("input", input, weight, is_complex, "reals" if is_complex else "nothing")
        check_strided("input", input)
        if input.ndim == 0 or input.shape[-1] != features:
            raise ValueError(f"input: got shape {tuple(input.shape)}, wanted (*, {features})")
        if is_complex and private.traced_for_onnx():
            return self._forward_of_parts(input)
        start = sketch_of(weight)
        matrices = self._numbers(weight)
        factors = (matrices if start is None else weight).unbind(0)
        x = input.to(matrices.dtype) if is_complex else input
        if input.ndim != 2:
            x = x.reshape(-1, features)
        # The blocks come first, so that each factor is one batched product.
        x = rearrange(x, "row (block i) -> block row i", block=self.num_blocks)
        for i, factor in enumerate(factors):
            if i:
                # The shuffle puts the features in another order, which is cut into blocks again.
                x = rearrange(x, "block row i -> row (i block)")
                x = rearrange(x, "row (block i) -> block row i", block=self.num_blocks)
            x = torch.bmm(x, factor.mT) if start is None else sketched_linear(x, factor, None, start, i)
        output = rearrange(x, "block row i -> row (block i)")
        if self.bias is not None:
            output = output + self._numbers(self.bias).to(output.dtype)
        return output if input.ndim == 2 else output.reshape(input.shape)

    def _forward_of_parts(self, input: Tensor) -> Tensor:
        """`forward` of a complex layer in real arithmetic, for exporters without complex numbers."""
        x = rearrange(
            pairs.parts(input.reshape(-1, input.shape[-1])), "row (x part) -> row x part", part=2
        )
        for i, factor in enumerate(self.weight.unbind(0)):
            if i:
                x = rearrange(x, "row (block i) part -> row (i block) part", block=self.num_blocks)
            x = rearrange(x, "row (block i) part -> block row (i part)", block=self.num_blocks)
            x = torch.bmm(x, pairs.real_matrix(factor).mT)
            x = rearrange(x, "block row (i part) -> row (block i) part", part=2)
        x = x if self.bias is None else x + self.bias
        return torch.view_as_complex(x.reshape(*input.shape, 2).contiguous())

    def extra_repr(self) -> str:
        kind = ", complex" if self.is_complex or self.weight.is_complex() else ""
        sketch = "" if self.sketch_rank is None else f", sketch_rank={self.sketch_rank}"
        return (
            f"num_blocks={self.num_blocks}, block_size={self.block_size},"
            f" num_factors={self.num_factors}, bias={self.bias is not None}{kind}{sketch}"
        )
