"""One time step of a recurrent layer with a unitary weight."""

import torch
from torch import Tensor

from projunn.nn.recurrent.layer import RecurrentModule, check_tensors, is_best_left_to_pytorch
from projunn.nn.recurrent.sequences import Sequences


class UnitaryRNNCell(RecurrentModule):
    """``h' = f(W_ih x + b_ih + W_hh h)`` with W_hh unitary: called like `torch.nn.RNNCell`.

    It is for programs that write the loop over time themselves; over a whole sequence `UnitaryRNN` is
    faster.  Its arguments are those of `torch.nn.RNNCell`, in that order, and ``sketch_rank``, with the
    meaning that they have in `UnitaryRNN`.  So are its attributes, whose names lack ``_l[k]``:
    ``weight_hh``, ``weight_ih``, ``bias_ih``, ``modrelu_bias``.

    Shape:
        ``input`` is (batch, input_size) or (input_size,), and ``hx`` (batch, n) or (n,), zeros if not
        given.  Returns h', of the shape of ``hx``.

    Raises:
        ValueError: a size, shape or option that does not fit.
        TypeError: ``dtype`` is not float32, float64, complex64 or complex128, or input of another dtype.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "modrelu",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sketch_rank: int | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, nonlinearity, bias, {"": input_size}, device, dtype, sketch_rank
        )

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        check_tensors(input, hx)
        if input.ndim not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input: got shape {tuple(input.shape)}, wanted (batch, {self.input_size}) or"
                f" ({self.input_size},)"
            )
        wanted = (*input.shape[:-1], self.hidden_size)
        if hx is not None and hx.shape != wanted:
            raise ValueError(f"hx: got shape {tuple(hx.shape)}, wanted {wanted}")
        x = input if input.ndim == 2 else input.unsqueeze(0)
        h = hx if hx is None or hx.ndim == 2 else hx.unsqueeze(0)
        layer = self._layer("")
        if is_best_left_to_pytorch(layer.weight_hh):
            return self._step(x, h, layer).reshape(wanted)
        return self._run(x.unsqueeze(0), h, layer, Sequences(1))[1].reshape(wanted)
