"""Launches of the time loop, with its kernel variant, its tiles and the precision of its products."""

import torch
import triton.language as tl
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from projunn_kernels.backends import interpreting
from projunn_kernels.configs.problem import Config, Problem, power_of_two
from projunn_kernels.launching import (
    TRITON_DTYPES,
    choose,
    launch,
    options,
    product_setting,
)
from projunn_kernels.sketching import sketch
from projunn_kernels.time_loop.arguments import RecurrenceBackward, numbers
from projunn_kernels.time_loop.kernels import recurrence_backward_kernel, recurrence_kernel
from projunn_kernels.time_loop.kernels.activation import IDENTITY, MODRELU, RELU, TANH
from projunn_kernels.time_loop.stepping import backward_by_steps, forward_by_steps, terms_of_a_warp
from projunn_kernels.time_loop.sums import TimeSums

CODES = {
    "identity": IDENTITY.value,
    "relu": RELU.value,
    "tanh": TANH.value,
    "modrelu": MODRELU.value,
}


def recurrence(
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    input_weight: Tensor | None,
    input_bias: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """All states, and a copy of the last: a GEMM that projects the inputs, and the loop."""
    x = inputs
    if input_weight is not None:
        x = functional.linear(inputs, input_weight, input_bias)
        if weight.ndim == 3:
            x = rearrange(x, "time batch (unit part) -> time batch unit part", part=2)
    stored = _flat(x), _flat(initial), _flat(weight), _flat_if_any(bias)
    states = forward(*stored, nonlinearity, _flat_if_any(resets))
    return states, states[-1].clone()


def recurrence_backward(call: RecurrenceBackward) -> list[Tensor]:
    """`projunn_kernels.recurrence_backward` by the loop, and by GEMMs for the sums over time."""
    h, h0 = numbers(call.weight, call.states, call.initial)
    dz, grad_initial, grad_bias = backward(
        _flat(_all_gradients(call)),
        _flat(call.states),
        _flat(call.weight),
        _flat_if_any(call.bias),
        call.nonlinearity,
        _flat_if_any(call.resets),
    )
    sums = TimeSums(h, h0, call, sums_bias=False, basis=None)
    grads, first = numbers(call.weight, dz, grad_initial)
    panels = [(0, 1), (1, len(h))][: len(h)]
    for begin, end in panels:
        sums.add(begin, end, grads[begin:end])
    results = sums.finish(first, grads, grad_bias)
    if call.basis is not None and call.wants_weight:
        before = [sums.steps.before(h0, h, *panel) for panel in panels]
        after = [sums.steps.rows(grads, *panel) for panel in panels]
        results += sketch(before, after, call.basis, call.weight.ndim == 3, call.group)
    return results


def _of_all_programs(resets: Tensor | None, rows: int) -> Tensor | None:
    """Resets of as many rows as all programs have, ``rows`` each."""
    if resets is None or resets.shape[1] % rows == 0:
        return resets
    return functional.pad(resets, (0, -resets.shape[1] % rows))


def _flat(tensor: Tensor) -> Tensor:
    """The numbers as kernels read them: contiguous, without a sign that is only noted."""
    return tensor.resolve_neg().contiguous()


def _flat_if_any(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _flat(tensor)


def _all_gradients(call: RecurrenceBackward) -> Tensor:
    """The gradient of all states with that of the last one added."""
    grad = call.grad
    if grad is None:
        grad = torch.zeros_like(call.states)
    elif call.grad_last is not None:
        grad = grad.clone(memory_format=torch.contiguous_format)
    if call.grad_last is not None:
        grad[-1] += call.grad_last
    return grad


def _operand(dtype: torch.dtype) -> tl.dtype:
    """The type that a product's factors are rounded to; the interpreter cannot multiply bfloat16."""
    if dtype == torch.bfloat16 and interpreting():
        return tl.float32
    return TRITON_DTYPES[dtype]


def _in_float32(weight: Tensor) -> bool:
    """Whether products are to be those of float32."""
    return weight.dtype == torch.float32 and product_setting(weight.dtype) == "highest"


def _config(
    operation: str, states: Tensor, weight: Tensor, nonlinearity: str, resets: Tensor | None
) -> Config:
    """The configuration in force for a loop; see `Problem` for its k."""
    batch, n = states.shape[1:3]
    precision = product_setting(weight.dtype)
    problem = Problem(operation, weight.ndim == 3, 1 if _in_float32(weight) else 2, batch, n, 1)
    return choose(
        problem,
        states.device,
        nonlinearity=nonlinearity,
        dtype=weight.dtype,
        precision=precision,
        resets=resets is not None,
    )


def _constants(config: Config, weight: Tensor, nonlinearity: str) -> dict[str, object]:
    overlap = _by_steps(config) and config.overlap and not interpreting()
    shared = {
        "F": CODES[nonlinearity],
        "PAIRS": weight.ndim == 3,
        "BB": config.rows,
        "BN": config.columns,
        "PRECISION": "ieee" if product_setting(weight.dtype) == "highest" else "tf32",
    } | options(config.warps, overlap=overlap)
    if not _by_steps(config):
        rest = _rest(config, weight)
        return shared | {"BK": rest, "HOLD": config.hold, "OPERAND": _operand(weight.dtype)}
    in_float32 = _in_float32(weight)
    return shared | {
        "BK": terms_of_a_warp(config) if in_float32 else config.depth,
        "SPLITS": config.warps if in_float32 else 0,
        "STAGES": config.stages,
        "OVERLAP": overlap,
    }


def _rest(config: Config, matrix: Tensor) -> int:
    """The units beside those of the first tile: where a part of W passes, those of one or two more."""
    if config.rows == 1 and not config.hold:
        return (matrix.ndim - 1) * config.columns
    more = len(matrix) - config.columns
    return max(32 if config.rows == 1 else 16, power_of_two(more)) if more > 0 else 0


def _by_steps(config: Config) -> bool:
    """Whether each time step is a launch."""
    return config.rows > 1 and not config.hold


def _of_a_row(config: Config, matrix: Tensor) -> Tensor:
    """M as a program of one row reads it: whole tiles, if a part of it passes by."""
    if config.hold:
        return matrix.contiguous()
    n = len(matrix)
    side = config.columns + _rest(config, matrix)
    padded = matrix.new_zeros(side, side, *matrix.shape[2:], dtype=torch.float32)
    padded[:n, :n] = matrix
    return padded


def _transposed(weight: Tensor) -> Tensor:
    """W^T, so that the kernels read along the rows of what they multiply by."""
    return weight.transpose(0, 1).contiguous()


def forward(
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    resets: Tensor | None,
) -> Tensor:
    """All T states, like ``inputs`` (T, batch, n): of contiguous tensors of one dtype: one launch,
    or one for each step where W cannot be held.

    ``resets``: (T, batch) booleans, or None.
    """
    states = torch.empty_like(inputs)
    if inputs.numel() == 0:
        return states
    steps, batch, n = inputs.shape[:3]
    config = _config("recurrence", inputs, weight, nonlinearity, resets)
    constants = _constants(config, weight, nonlinearity)
    shared = {"bias": weight if bias is None else bias, "batch": batch, "n": n} | constants
    resets = _of_all_programs(resets, config.rows)
    if _by_steps(config):
        forward_by_steps(config, shared, inputs, initial, weight, resets, states)
        return states
    launch(
        recurrence_kernel,
        (-(-batch // config.rows),),
        inputs=inputs,
        initial=initial,
        w=_of_a_row(config, weight.transpose(0, 1)) if config.rows == 1 else weight,
        resets=resets,
        states=states,
        steps=steps,
        **shared,
    )
    return states


def backward(
    grad: Tensor,
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the inputs, the initial state and the bias: launched as `forward` is."""
    grad_inputs = torch.empty_like(states)
    if states.numel() == 0:
        none = torch.empty_like(states[0])
        return grad_inputs, none, None if bias is None else torch.zeros_like(bias)
    steps, batch, n = states.shape[:3]
    config = _config("recurrence_backward", states, weight, nonlinearity, resets)
    programs = -(-batch // config.rows)
    constants = _constants(config, weight, nonlinearity)
    shared = {"bias": weight if bias is None else bias, "batch": batch, "n": n} | constants
    sums = torch.zeros(programs if bias is not None else 1, n, dtype=torch.float32, device=grad.device)
    shared |= {"partial": sums}
    padded = _of_all_programs(resets, config.rows)
    if _by_steps(config):
        backward_by_steps(config, shared, grad, states, weight, padded, grad_inputs)
        following = grad_inputs[0]
        single = weight if weight.dtype == torch.float32 else weight.float()
        rows, w = numbers(single, following.to(single.dtype), single)
        if resets is not None:
            rows = rows.masked_fill(resets[0, :, None], 0)
        grad_initial = (rows @ w.conj()).resolve_conj()
        grad_initial = torch.view_as_real(grad_initial) if weight.ndim == 3 else grad_initial
        grad_initial = grad_initial.to(weight.dtype)
    else:
        grad_initial = torch.empty_like(states[0])
        launch(
            recurrence_backward_kernel,
            (programs,),
            grad=grad,
            states=states,
            w=_of_a_row(config, weight) if config.rows == 1 else _transposed(weight),
            resets=padded,
            grad_inputs=grad_inputs,
            grad_initial=grad_initial,
            steps=steps,
            **shared,
        )
    return grad_inputs, grad_initial, None if bias is None else sums.sum(0).to(bias.dtype)
