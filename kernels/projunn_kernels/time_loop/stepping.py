"""The time loop as a launch for each step, where no multiprocessor can hold W.

On tensor cores (`kernels.panels`) a step reads the state of before where the step before stored it.  In
float32 (`kernels.float32`) it reads a copy, `Columns`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.problem import Config
from projunn_kernels.launching import Launch, launch
from projunn_kernels.time_loop.kernels import (
    recurrence_backward_kernel,
    recurrence_kernel,
    recurrence_step_backward_kernel,
    recurrence_step_kernel,
)


def terms_of_a_warp(config: Config) -> int:
    """How many terms of a panel's sums a warp has, in float32."""
    return max(16, config.depth // config.warps)


class Columns:
    """M^T, and h_{t-1} and h_t by turns as columns (n, batch): what a step in float32 reads and writes.

    All is padded by zeros to whole tiles.  Complex numbers have a plane for real parts and another for
    imaginary parts.
    """

    def __init__(self, config: Config, matrix: Tensor, batch: int) -> None:
        tile = max(config.columns, terms_of_a_warp(config) * config.warps)
        least = max(16, config.rows)
        padded, tall = -(-len(matrix) // tile) * tile, -(-batch // least) * least
        planes = _planes(matrix)
        self.matrix = matrix.new_zeros(len(planes), padded, padded)
        self.matrix[:, : len(matrix), : len(matrix)] = planes
        self.states = matrix.new_zeros(2, len(planes), padded, tall)

    def start(self, state: Tensor) -> None:
        """Let h_0 be ``state`` (batch, n)."""
        planes = _planes(state.transpose(0, 1))
        self.states[0, :, : planes.shape[1], : planes.shape[2]] = planes

    def arguments(self) -> dict[str, Any]:
        """Of every launch."""
        return {"m": self.matrix, "padded": self.matrix.shape[1], "tall": self.states.shape[3]}


def _planes(numbers: Tensor) -> Tensor:
    """Numbers (., .), or pairs (., ., 2), as one or two planes."""
    return numbers.movedim(-1, 0) if numbers.ndim == 3 else numbers[None]


def forward_in_float32(
    config: Config,
    shared: dict[str, Any],
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    resets: Tensor | None,
    states: Tensor,
) -> None:
    """Write all states; ``shared`` are the arguments of every launch that are known."""
    columns = Columns(config, weight.transpose(0, 1), len(initial))
    columns.start(initial)
    run = _every_step(recurrence_step_kernel, config, states[0], shared | columns.arguments())
    tensors = inputs, states, columns.states, resets
    x, h, both, cuts = (_by_step(tensor, run, len(states)) for tensor in tensors)
    for t in range(len(states)):
        run(inputs=x[t], states=h[t], before=both[t % 2], after=both[1 - t % 2], resets=cuts[t])
        if t == 0:
            x, h, both, cuts = (_by_step(tensor, run, len(states)) for tensor in tensors)


def backward_in_float32(
    config: Config,
    shared: dict[str, Any],
    grad: Tensor,
    states: Tensor,
    weight: Tensor,
    resets: Tensor | None,
    grad_inputs: Tensor,
) -> None:
    """Write the gradients of all inputs."""
    columns = Columns(config, weight, states.shape[1])
    if weight.ndim == 3:
        columns.matrix[1].neg_()
    run = _every_step(recurrence_step_backward_kernel, config, states[0], shared | columns.arguments())
    tensors = grad, states, grad_inputs, columns.states, resets
    g, h, d, both, cuts = (_by_step(tensor, run, len(states)) for tensor in tensors)
    last = len(states) - 1
    for t in range(last, -1, -1):
        cut = cuts[min(t + 1, last)]  # that of the first launch cuts a gradient that is zero
        run(
            grad=g[t], states=h[t], grad_inputs=d[t], before=both[t % 2], after=both[1 - t % 2],
            resets=cut,
        )  # fmt: skip
        if t == last:
            g, h, d, both, cuts = (_by_step(tensor, run, len(states)) for tensor in tensors)


def forward_on_tensor_cores(
    config: Config,
    shared: dict[str, Any],
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    resets: Tensor | None,
    states: Tensor,
) -> None:
    """As `forward_in_float32`."""
    run = _every_step(recurrence_kernel, config, states[0], shared | {"w": weight, "steps": 1})
    cut = None if resets is None else resets[0]
    run(inputs=inputs[0], initial=initial, states=states[0], resets=cut)
    x, h, cuts = (_by_step(tensor, run, len(states)) for tensor in (inputs, states, resets))
    for t in range(1, len(states)):
        run(inputs=x[t], initial=h[t - 1], states=h[t], resets=cuts[t])


def backward_on_tensor_cores(
    config: Config,
    shared: dict[str, Any],
    grad: Tensor,
    states: Tensor,
    weight: Tensor,
    resets: Tensor | None,
    grad_inputs: Tensor,
) -> None:
    """As `backward_in_float32`."""
    transposed = weight.transpose(0, 1).contiguous()
    arguments = shared | {"w": transposed, "steps": 1}
    run = _every_step(recurrence_backward_kernel, config, states[0], arguments)
    cut = None if resets is None else resets[-1]
    run(
        grad=grad[-1], states=states[-1], grad_inputs=grad_inputs[-1],
        grad_initial=torch.zeros_like(states[0]), resets=cut,
    )  # fmt: skip
    g, h, d, cuts = (
        _by_step(tensor, run, len(states)) for tensor in (grad, states, grad_inputs, resets)
    )
    for t in range(len(states) - 2, -1, -1):
        run(grad=g[t], states=h[t], grad_inputs=d[t], grad_initial=d[t + 1], resets=cuts[t + 1])


def _every_step(
    kernel: Any, config: Config, state: Tensor, arguments: dict[str, Any]
) -> Callable[..., None]:
    """The launch of a time step, which is given the tensors of the step.

    Its binary is looked up once where the ``state`` of every step is aligned as that of the first.
    """
    grid = -(-arguments["batch"] // config.rows), -(-arguments["n"] // config.columns)
    if state.numel() * state.element_size() % 16 == 0:
        return Launch(kernel, grid, **arguments)
    return lambda **tensors: launch(kernel, grid, **arguments, **tensors)


def _by_step(
    tensor: Tensor | None, run: Callable[..., None], steps: int
) -> Sequence[Tensor | int | None]:
    """The part of each time step, as a launch takes it: its address, once the binary is known."""
    if tensor is None:
        return [None] * steps
    if not isinstance(run, Launch) or not run.takes_addresses:
        return tensor.unbind()
    begin, each = tensor.data_ptr(), tensor.stride(0) * tensor.element_size()
    return range(begin, begin + len(tensor) * each, each) if each else [begin] * len(tensor)
