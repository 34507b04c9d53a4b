"""The parameters of recurrent layers, and one layer's pass through time."""

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from projunn.arguments import check_numbers, check_strided, flag, one_of, positive, tensor
from projunn.init import henaff_
from projunn.manifold import UnitaryParameter
from projunn.nn.module import UnitaryModule, sketch_of, start_sketch
from projunn.nn.recurrent.sequences import Sequences
from projunn.nn.sketched import sketched_recurrence
from projunn_kernels import NONLINEARITIES, apply_nonlinearity, private, recurrence


class Layer(NamedTuple):
    """The parameters of one layer and direction, as they are stored."""

    weight_ih: Tensor
    weight_hh: Any  # a `UnitaryParameter`, or what stands for one
    bias_ih: Tensor | None
    modrelu_bias: Tensor | None


class RecurrentModule(UnitaryModule):
    """Parameters of layers ``h' = f(W_ih x + b_ih + W_hh h)``, named as in ``torch.nn``.

    Args:
        suffixes: how the names of each layer's parameters end, and the number of features of its input.
        input_size, hidden_size, nonlinearity, bias, device, dtype, sketch_rank: as in `UnitaryRNN`.
    """

    _reals_only = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        nonlinearity: str,
        bias: bool,
        suffixes: dict[str, int],
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
        for suffix, size in suffixes.items():
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

    def _layer(self, suffix: str) -> Layer:
        """The parameters whose names end in ``suffix``, as they are now."""
        return Layer(
            getattr(self, f"weight_ih{suffix}"),
            getattr(self, f"weight_hh{suffix}"),
            getattr(self, f"bias_ih{suffix}") if self.bias else None,
            getattr(self, f"modrelu_bias{suffix}") if self.nonlinearity == "modrelu" else None,
        )

    def _run(
        self, input: Tensor, initial: Tensor | None, layer: Layer, sequences: Sequences
    ) -> tuple[Tensor, Tensor]:
        """All states and the last of each sequence, from the input of one layer."""
        weight, is_complex = layer.weight_hh, self.is_complex
        is_packed = sequences.batch_sizes is not None
        if not is_packed and is_best_left_to_pytorch(weight) and sequences.steps == 1:
            reset = None if sequences.resets is None else sequences.resets[0]
            h = self._step(input[0], initial, layer, reset)
            return torch.stack([h]), h.clone()  # no views: both may be changed in place
        check_numbers("input", input, weight, is_complex, "reals" if is_complex else "nothing")
        u, input_weight, input_bias = self._entry(input, layer)
        if initial is None:
            sizes = sequences.batch_sizes
            batch = u.shape[1] if sizes is None else sizes[0]
            initial = weight.new_zeros((batch, *weight.shape[1:]))
        else:
            check_numbers("hx", initial, weight, is_complex, "all numbers")
            if is_complex:
                initial = initial.to(self._numbers(weight).dtype)
                initial = torch.view_as_real(initial.resolve_conj())
        arguments = (
            u,
            initial.to(weight.dtype),
            weight,
            layer.modrelu_bias,
            self.nonlinearity,
            input_weight,
            input_bias,
        )
        run = recurrence if sketch_of(weight) is None else sketched_recurrence
        states, last = run(*arguments, batch_sizes=sequences.batch_sizes, resets=sequences.resets)
        return self._numbers(states), self._numbers(last)

    def _step(self, x: Tensor, h: Tensor | None, layer: Layer, reset: Tensor | None = None) -> Tensor:
        """The state after one time step, by the formula in PyTorch's operations."""
        stored, is_complex = layer.weight_hh, self.is_complex
        check_numbers("input", x, stored, is_complex, "reals" if is_complex else "nothing")
        weight, inner = self._numbers(layer.weight_ih), self._numbers(stored)
        bias = None if layer.bias_ih is None else self._numbers(layer.bias_ih)
        z = functional.linear(x.to(weight.dtype) if is_complex else x, weight, bias)
        if h is not None:
            check_numbers("hx", h, stored, is_complex, "all numbers")
            h = h.to(inner.dtype)
            if reset is not None:
                h = h.masked_fill(reset.unsqueeze(1), 0)
        elif torch.is_grad_enabled():  # W_hh has a gradient, of zeros, as after more time steps
            h = z.new_zeros(z.shape)
        if h is not None:
            z = torch.addmm(z, h, inner.mT)
        return apply_nonlinearity(z, layer.modrelu_bias, self.nonlinearity)

    def _entry(self, input: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns (input, weight, bias) if the time loop is to project the input.

        Otherwise returns (projected input, None, None): on a GPU, and under autocast, one GEMM for all
        time steps is best left to PyTorch.
        """
        weight, bias = layer.weight_ih, layer.bias_ih
        stored = weight.dtype
        if self.is_complex:  # real and imaginary parts become separate real columns
            times_i = torch.stack([-weight[..., 1], weight[..., 0]], -1)
            columns = torch.stack([weight, times_i], 2) if input.is_complex() else weight.unsqueeze(2)
            weight = rearrange(columns, "unit feature of part -> (unit part) (feature of)")
            bias = None if bias is None else rearrange(bias, "unit part -> (unit part)")
            if input.is_complex():
                input = torch.view_as_real(input.resolve_conj())
                input = rearrange(input, "... feature part -> ... (feature part)")
            else:
                input = input.to(stored)
        kind = input.device.type
        if kind == "cpu" and input.dtype == weight.dtype and not torch.is_autocast_enabled(kind):
            return input, weight, bias
        projected = functional.linear(input, weight, bias).to(stored)
        if self.is_complex:
            projected = rearrange(projected, "... (unit part) -> ... unit part", part=2)
        return projected, None, None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """The two biases of PyTorch's layers, of which only the sum matters, become one."""
        for name in self._parameters:
            own, second = prefix + name, prefix + name.replace("bias_ih", "bias_hh")
            if own != second and second in state_dict and own in state_dict:
                state_dict[own] = state_dict[own] + state_dict.pop(second)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        kind = ", complex" if self.is_complex else ""
        sketch = "" if self.sketch_rank is None else f", sketch_rank={self.sketch_rank}"
        return (
            f"{self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity!r},"
            f" bias={self.bias}{kind}{sketch}"
        )


def is_best_left_to_pytorch(weight: Tensor) -> bool:
    """True where one time step by the formula is faster than by the operator of the time loop.

    A traced step has to be the operator: its graph may be called with more of them.
    """
    return not (
        torch.compiler.is_compiling()
        or private.traced_by_jit()
        or (private.active_modes() and private.traced_by_make_fx())
        or private.is_autocast_on()
        or (torch.is_grad_enabled() and sketch_of(weight) is not None)
    )


def check_tensors(input: Tensor, hx: Tensor | None) -> None:
    check_strided("input", tensor("input", input))
    if hx is not None:
        check_strided("hx", tensor("hx", hx))
