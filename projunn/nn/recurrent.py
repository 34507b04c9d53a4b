"""Recurrent layers with a unitary hidden-to-hidden weight."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from projunn.arguments import check_numbers, check_strided, flag, number, one_of, positive, tensor
from projunn.init import henaff_
from projunn.manifold import UnitaryParameter
from projunn.nn.module import UnitaryModule, sketch_of, start_sketch
from projunn.nn.sketched import sketched_recurrence
from projunn_kernels import NONLINEARITIES, recurrence


class _Recurrent(UnitaryModule):
    """Parameters of layers ``h' = f(W_ih x + b_ih + W_hh h)``, named as in ``torch.nn``."""

    _reals_only = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        nonlinearity: str,
        bias: bool,
        suffixes: list[str],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        sketch_rank: int | None,
    ) -> None:
        super().__init__(dtype)
        self.sketch_rank = sketch_rank
        one_of("nonlinearity", nonlinearity, NONLINEARITIES)
        if self.is_complex and nonlinearity == "relu":
            raise ValueError(
                'nonlinearity: "relu" has no meaning for complex numbers; wanted "modrelu", "tanh" or'
                ' "identity"'
            )
        self.input_size = positive("input_size", input_size)
        self.hidden_size = positive("hidden_size", hidden_size)
        self.nonlinearity = nonlinearity
        self.bias = bias = flag("bias", bias)
        for i, suffix in enumerate(suffixes):
            size = hidden_size if i else input_size
            setattr(self, f"weight_ih{suffix}", self._plain(hidden_size, size, device=device))
            weight_hh = self._matrices(hidden_size, hidden_size, device=device, sketch_rank=sketch_rank)
            setattr(self, f"weight_hh{suffix}", weight_hh)
            if bias:
                setattr(self, f"bias_ih{suffix}", self._plain(hidden_size, device=device))
            if nonlinearity == "modrelu":
                offset = torch.empty(hidden_size, dtype=self._stored, device=device)
                setattr(self, f"modrelu_bias{suffix}", nn.Parameter(offset))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew: W_hh by `projunn.init.henaff_`, W_ih Xavier uniform, b_ih zero.

        The b of modReLU is uniform in +-0.01.  b_ih starts at zero because a unitary recurrence forgets
        nothing, so that a bias adds up over all time steps.
        """
        for name, parameter in self.named_parameters():
            if isinstance(parameter, UnitaryParameter):
                henaff_(parameter)
                start_sketch(parameter)
            elif name.startswith("modrelu"):
                nn.init.uniform_(parameter, -0.01, 0.01)
            elif name.startswith("bias"):
                nn.init.zeros_(parameter)
            else:
                parts = 2 if self.is_complex else 1
                bound = (6 / parts / (parameter.shape[0] + parameter.shape[1])) ** 0.5
                nn.init.uniform_(parameter, -bound, bound)

    def _run(self, input: Tensor, initial: Tensor | None, suffix: str) -> tuple[Tensor, Tensor]:
        """All states (T, batch, n) and the last, from the input (T, batch, input_size) of one layer."""
        weight: UnitaryParameter = getattr(self, f"weight_hh{suffix}")
        is_complex = self.is_complex
        check_numbers("input", input, weight, is_complex, "reals" if is_complex else "nothing")
        u, input_weight, input_bias = self._entry(input, suffix)
        if initial is None:
            initial = weight.new_zeros((u.shape[1], *weight.shape[1:]))
        else:
            check_numbers("hx", initial, weight, is_complex, "all numbers")
            if is_complex:
                initial = torch.view_as_real(initial.to(self._numbers(weight).dtype))
        offset = getattr(self, f"modrelu_bias{suffix}", None)
        arguments = (
            u,
            initial.to(weight.dtype),
            weight,
            offset,
            self.nonlinearity,
            input_weight,
            input_bias,
        )
        states, last = (
            recurrence(*arguments) if sketch_of(weight) is None else sketched_recurrence(*arguments)
        )
        return self._numbers(states), self._numbers(last)

    def _entry(self, input: Tensor, suffix: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns (input, weight, bias) if the time loop is to project the input.

        Otherwise returns (projected input, None, None): on a GPU, and under autocast, one GEMM for all
        time steps is best left to PyTorch.
        """
        weight: Tensor = getattr(self, f"weight_ih{suffix}")
        stored = weight.dtype
        bias: Tensor | None = getattr(self, f"bias_ih{suffix}", None)
        if self.is_complex:  # real and imaginary parts become separate real columns
            times_i = torch.stack([-weight[..., 1], weight[..., 0]], -1)
            columns = torch.stack([weight, times_i], 2) if input.is_complex() else weight.unsqueeze(2)
            weight = rearrange(columns, "unit feature of part -> (unit part) (feature of)")
            bias = None if bias is None else rearrange(bias, "unit part -> (unit part)")
            if input.is_complex():
                input = torch.view_as_real(input)
                input = rearrange(input, "time batch feature part -> time batch (feature part)")
            else:
                input = input.to(stored)
        kind = input.device.type
        if kind == "cpu" and input.dtype == weight.dtype and not torch.is_autocast_enabled(kind):
            return input, weight, bias
        projected = functional.linear(input, weight, bias).to(stored)
        if self.is_complex:
            projected = rearrange(projected, "time batch (unit part) -> time batch unit part", part=2)
        return projected, None, None

    def extra_repr(self) -> str:
        kind = ", complex" if self.is_complex else ""
        sketch = "" if self.sketch_rank is None else f", sketch_rank={self.sketch_rank}"
        return (
            f"{self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity!r},"
            f" bias={self.bias}{kind}{sketch}"
        )


def _check_tensors(input: Tensor, hx: Tensor | None) -> None:
    check_strided("input", tensor("input", input))
    if hx is not None:
        check_strided("hx", tensor("hx", hx))


class UnitaryRNN(_Recurrent):
    """``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1})`` with W_hh unitary: called like `torch.nn.RNN`.

    The loop over time is a single operator (`projunn_kernels.recurrence`).  A loss that needs only the
    last state should take it from ``h_n``: for ``output[-1]`` autograd makes a gradient of all states
    and fills it with zeros.

    Args:
        input_size: the number of features of the input.
        hidden_size: n, the number of features of the hidden state.
        num_layers: the number of recurrent layers, each fed by the one before.
        nonlinearity: f: ``"modrelu"`` (`projunn.nn.ModReLU`, with a learned b), ``"relu"`` (real only),
            ``"tanh"`` or ``"identity"``.
        bias: whether to learn b_ih.  The b of modReLU is learned in any case.
        batch_first: whether input and output are (batch, T, features).
        dropout: probability of dropout on the output of each layer but the last.
        device: as in ``torch.nn.RNN``.
        dtype: float32, float64, complex64 or complex128; default: PyTorch's default dtype.
        sketch_rank: rank of sketched gradients of W_hh, as in `projunn.nn.UnitaryLinear`.  What is
            sketched is the gradient summed over all time steps.

    Shape:
        ``input`` is (T, batch, input_size), or (batch, T, input_size) with ``batch_first``, or (T,
        input_size) without batch; complex layers take complex input too.  ``hx`` is (num_layers, batch,
        n), or (num_layers, n) without batch; zeros if not given.  Returns ``output``, the states of the
        last layer, (T, batch, n) with its axes ordered as those of ``input``, and ``h_n`` (num_layers,
        batch, n).  Both are complex for a complex layer.

    Attributes:
        weight_hh_l[k]: W_hh of layer k, a `projunn.UnitaryParameter` (n, n), which
            `projunn.init.henaff_` initialises.
        weight_ih_l[k], bias_ih_l[k], modrelu_bias_l[k]: W_ih (n, input_size, or n for k > 0), b_ih (n,)
            and the b of modReLU (n,) of layer k.  In complex layers all but the last, which is real,
            have a trailing axis (re, im), and so has W_hh.

    Raises:
        ValueError: a size, shape or option that does not fit.
        TypeError: ``dtype`` is none of those four, or input of another dtype, or a ``PackedSequence``;
            pad the sequences and mask the loss instead.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "modrelu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sketch_rank: int | None = None,
    ) -> None:
        suffixes = [f"_l{i}" for i in range(positive("num_layers", num_layers))]
        dropout = number("dropout", dropout, 0, 1)
        batch_first = flag("batch_first", batch_first)
        super().__init__(
            input_size, hidden_size, nonlinearity, bias, suffixes, device, dtype, sketch_rank
        )
        self._suffixes = suffixes
        self.num_layers = len(suffixes)
        self.batch_first = batch_first
        self.dropout = dropout

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if isinstance(input, PackedSequence):
            raise TypeError("input: got a PackedSequence, wanted a padded tensor")
        _check_tensors(input, hx)
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input: got shape {tuple(input.shape)}, wanted (T, batch, {self.input_size}),"
                f" (batch, T, {self.input_size}) with batch_first, or (T, {self.input_size})"
            )
        unbatched = input.ndim == 2
        batch_comes_first = self.batch_first and not unbatched
        x = input.unsqueeze(1) if unbatched else input
        if batch_comes_first:
            x = rearrange(x, "batch time feature -> time batch feature")
        if x.shape[0] == 0:
            raise ValueError(f"input: got shape {tuple(input.shape)}, wanted at least one time step")
        wanted = (self.num_layers, *(() if unbatched else (x.shape[1],)), self.hidden_size)
        if hx is not None and hx.shape != wanted:
            raise ValueError(f"hx: got shape {tuple(hx.shape)}, wanted {wanted}")
        initial = hx.unsqueeze(1) if hx is not None and unbatched else hx
        last = []
        for i, suffix in enumerate(self._suffixes):
            if i and self.dropout:
                x = self._drop(x)
            x, h = self._run(x, None if initial is None else initial[i], suffix)
            last.append(h)
        h_n = torch.stack(last)
        if unbatched:
            return x.squeeze(1), h_n.squeeze(1)
        return rearrange(x, "time batch unit -> batch time unit") if batch_comes_first else x, h_n

    def _drop(self, x: Tensor) -> Tensor:
        if not x.is_complex():
            return functional.dropout(x, self.dropout, self.training)
        return x * functional.dropout(torch.ones_like(x.real), self.dropout, self.training)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        for name, usual in (("num_layers", 1), ("batch_first", False), ("dropout", 0.0)):
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)}"
        return text


class UnitaryRNNCell(_Recurrent):
    """``h' = f(W_ih x + b_ih + W_hh h)`` with W_hh unitary: called like `torch.nn.RNNCell`.

    It is for programs that write the loop over time themselves; over a whole sequence `UnitaryRNN` is
    faster.  Its arguments are those of `UnitaryRNN` without ``num_layers``, ``batch_first`` and
    ``dropout``.  So are its attributes, whose names lack ``_l[k]``: ``weight_hh``, ``weight_ih``,
    ``bias_ih``, ``modrelu_bias``.

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
        super().__init__(input_size, hidden_size, nonlinearity, bias, [""], device, dtype, sketch_rank)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        _check_tensors(input, hx)
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
        return self._run(x.unsqueeze(0), h, "")[1].reshape(wanted)
