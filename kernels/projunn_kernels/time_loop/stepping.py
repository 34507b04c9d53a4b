"""The time loop as a launch for each step, where no multiprocessor can hold W."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.backends import interpreting
from projunn_kernels.configs.problem import Config
from projunn_kernels.launching import Launch, launch
from projunn_kernels.time_loop.kernels import recurrence_step_backward_kernel, recurrence_step_kernel


def terms_of_a_warp(config: Config) -> int:
    """How many terms of a panel's sums a warp has, in float32."""
    return max(16, config.depth // config.warps)


class Panels:
    """What steps read in panels (`kernels.every_step`): M, and h_{t-1} and h_t by turns.

    All is padded by zeros to whole tiles.  Complex numbers have a plane for real parts and another for
    imaginary parts.

    Args:
        matrix: M (n, n), in pairs (n, n, 2) if complex.
        batch: how many rows h has.
        transposed: whether M^T and columns h are stored.
    """

    def __init__(self, config: Config, matrix: Tensor, batch: int, transposed: bool) -> None:
        planes = _planes(matrix, transposed)
        panel = terms_of_a_warp(config) * config.warps if transposed else config.depth
        tile, least = max(config.columns, panel), max(16, config.rows)
        padded, tall = -(-len(matrix) // tile) * tile, -(-batch // least) * least
        # the interpreter cannot multiply bfloat16
        rounded = matrix.dtype == torch.bfloat16 and interpreting()
        empty = matrix.new_zeros((), dtype=torch.float32 if rounded else matrix.dtype)
        self.transposed = transposed
        self.matrix = empty.new_zeros(len(planes), padded, padded)
        self.matrix[:, : len(matrix), : len(matrix)] = planes
        shape = (padded, tall) if transposed else (tall, padded)
        self.states = empty.new_zeros(2, len(planes), *shape)
        self.arguments = {"m": self.matrix, "padded": padded, "tall": tall}

    def start(self, state: Tensor) -> None:
        """Let h_0 be ``state`` (batch, n)."""
        planes = _planes(state, self.transposed)
        self.states[0, :, : planes.shape[1], : planes.shape[2]] = planes


def _planes(numbers: Tensor, transposed: bool) -> Tensor:
    """Numbers (., .), or pairs (., ., 2), as one or two planes, each transposed or not."""
    planes = numbers.movedim(-1, 0) if numbers.ndim == 3 else numbers[None]
    return planes.mT if transposed else planes


def forward_by_steps(
    config: Config,
    shared: dict[str, Any],
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    resets: Tensor | None,
    states: Tensor,
) -> None:
    """Write all states; ``shared`` are the arguments of every launch that are known."""
    panels = Panels(config, weight, len(initial), shared["SPLITS"] > 0)
    panels.start(initial)
    run = _every_step(recurrence_step_kernel, config, states[0], shared | panels.arguments)
    tensors = inputs, states, panels.states, resets
    x, h, both, cuts = (_by_step(tensor, run, len(states)) for tensor in tensors)
    for t in range(len(states)):
        run(inputs=x[t], states=h[t], before=both[t % 2], after=both[1 - t % 2], resets=cuts[t])
        if t == 0:
            x, h, both, cuts = (_by_step(tensor, run, len(states)) for tensor in tensors)


def backward_by_steps(
    config: Config,
    shared: dict[str, Any],
    grad: Tensor,
    states: Tensor,
    weight: Tensor,
    resets: Tensor | None,
    grad_inputs: Tensor,
) -> None:
    """Write the gradients of all inputs."""
    panels = Panels(config, weight.transpose(0, 1), states.shape[1], shared["SPLITS"] > 0)
    if weight.ndim == 3:
        panels.matrix[1].neg_()
    run = _every_step(recurrence_step_backward_kernel, config, states[0], shared | panels.arguments)
    tensors = grad, states, grad_inputs, panels.states, resets
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
