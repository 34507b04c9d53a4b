"""Launches of the time loop: which kernel variant, tiles and precision of the products.

Tensors arrive as `projunn_kernels.recurrence` has them, contiguous: states (T, batch, n) and W (n, n) in
one dtype, complex ones with a trailing axis of size 2.
"""

import torch
import triton.language as tl
from torch import Tensor

from projunn_kernels.backends import interpreting
from projunn_kernels.jit.launch import TRITON_DTYPES, options
from projunn_kernels.jit.recurrence import (
    IDENTITY,
    MODRELU,
    RELU,
    TANH,
    recurrence_backward_kernel,
    recurrence_kernel,
)
from projunn_kernels.problems import Config, Problem, device_of
from projunn_kernels.tuning import config_for

CODES = {
    "identity": IDENTITY.value,
    "relu": RELU.value,
    "tanh": TANH.value,
    "modrelu": MODRELU.value,
}


def dot_precision(tensor: Tensor) -> str:
    """How float32 products are made: what ``torch.set_float32_matmul_precision`` asks for.

    ``highest`` is true float32, ``high`` three TF32 products that agree with it to a few roundings,
    ``medium`` one.  AMD's matrix cores take float32 as it is.
    """
    if tensor.dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    return {"high": "tf32x3", "medium": "tf32"}.get(torch.get_float32_matmul_precision(), "ieee")


def _operand(dtype: torch.dtype) -> tl.dtype:
    """What the factors of a product are rounded to; the interpreter cannot multiply bfloat16."""
    if dtype == torch.bfloat16 and interpreting():
        return tl.float32
    return TRITON_DTYPES[dtype]


def _constants(
    operation: str, states: Tensor, weight: Tensor, nonlinearity: str, given: Config | None
) -> dict[str, object]:
    steps, batch, n = states.shape[:3]
    pairs = weight.ndim == 3
    c = given
    if c is None:
        problem = Problem(operation, pairs, 1, batch, n, steps)
        c = config_for(problem, device_of(states.device))[0]
    return {
        "F": CODES[nonlinearity],
        "PAIRS": pairs,
        "BM": c.rows,
        "BN": c.columns,
        "BK": c.columns if c.hold else c.depth,
        "HOLD": c.hold,
        "OPERAND": _operand(weight.dtype),
        "PRECISION": dot_precision(weight),
        "STAGES": c.stages,
    } | options(c.warps)


def forward(
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    config: Config | None = None,
) -> Tensor:
    """All T states, like ``inputs``: one launch."""
    states = torch.empty_like(inputs)
    if inputs.numel() == 0:
        return states
    steps, batch, n = inputs.shape[:3]
    constants = _constants("recurrence", inputs, weight, nonlinearity, config)
    recurrence_kernel[(-(-batch // constants["BM"]),)](
        inputs,
        initial,
        weight,
        weight if bias is None else bias,
        states,
        steps,
        batch,
        n,
        **constants,
    )
    return states


def backward(
    grad: Tensor,
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the inputs, the initial state and the bias: one launch, and a sum for the bias."""
    grad_inputs, grad_initial = torch.empty_like(states), torch.empty_like(states[0])
    if states.numel() == 0:
        return grad_inputs, grad_initial, None if bias is None else torch.zeros_like(bias)
    steps, batch, n = states.shape[:3]
    constants = _constants("recurrence_backward", states, weight, nonlinearity, config)
    programs = -(-batch // constants["BM"])
    partial = torch.empty(
        programs if bias is not None else 1, n, dtype=torch.float32, device=grad.device
    )
    recurrence_backward_kernel[(programs,)](
        grad,
        states,
        weight,
        weight if bias is None else bias,
        grad_inputs,
        grad_initial,
        partial,
        steps,
        batch,
        n,
        **constants,
    )
    return grad_inputs, grad_initial, None if bias is None else partial.sum(0).to(bias.dtype)
