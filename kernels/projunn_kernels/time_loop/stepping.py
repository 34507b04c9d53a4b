"""The time loop as a launch for each step, where no multiprocessor can hold W."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.backends import TooManyPrograms, interpreting
from projunn_kernels.configs.problem import Config
from projunn_kernels.launching import Launch, launch
from projunn_kernels.time_loop.kernels import recurrence_step_backward_kernel, recurrence_step_kernel


def terms_of_a_warp(config: Config) -> int:
    """How many terms of a panel's sums a warp has, in float32."""
    return max(16, config.depth // config.warps)


class Panels:
    """What steps read in panels (`kernels.every_step`): M, h_0, and by turns h_{t-1} and h_t.

    All is padded by zeros to whole tiles.  Complex numbers have a plane for real parts and another for
    imaginary parts.

    Args:
        matrix: M, as planes (., n, n).
        first: h_0, as planes (., batch, n).
        shared: the constants of the kernel: in float32 M^T and columns h are stored.

    Raises:
        TooManyPrograms: M has 2^31 numbers or more, whose places a kernel has in 32 bits.
    """

    def __init__(self, config: Config, matrix: Tensor, first: Tensor, shared: dict[str, Any]) -> None:
        transposed, precision = shared["SPLITS"] > 0, shared["PRECISION"]
        panel = terms_of_a_warp(config) * config.warps if transposed else config.depth
        padded = _round_up(matrix.shape[1], max(config.columns, panel))
        if padded**2 >> 31:
            raise TooManyPrograms(f"a W of {padded} x {padded}, whose places a kernel has in 32 bits")
        tall = _round_up(first.shape[1], max(16, config.rows))
        shape = (tall, padded)
        if transposed:
            matrix, first, shape = matrix.mT, first.mT, shape[::-1]
        self.first = _for_tensor_cores(_padded(first, *shape), precision)
        is_whole = first.shape[1:] == shape
        make = self.first.new_empty if is_whole else self.first.new_zeros
        self.states = make(2, len(first), *shape)
        matrix = _for_tensor_cores(_padded(matrix, padded, padded), precision)
        self.arguments = {"m": matrix, "padded": padded, "tall": tall}


def _round_up(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def _planes(numbers: Tensor) -> Tensor:
    """Numbers (., .), or pairs (., ., 2), as one or two planes."""
    return numbers.movedim(-1, 0) if numbers.ndim == 3 else numbers[None]


def _padded(planes: Tensor, rows: int, columns: int) -> Tensor:
    """Planes padded by zeros, contiguous and aligned; themselves, if they are that."""
    if planes.dtype == torch.bfloat16 and interpreting():
        planes = planes.float()  # which is all that the interpreter can multiply
    if planes.shape[1:] == (rows, columns):
        planes = planes.contiguous()
        return planes if planes.data_ptr() % 16 == 0 else planes.clone()
    padded = planes.new_zeros(len(planes), rows, columns)
    padded[:, : planes.shape[1], : planes.shape[2]] = planes
    return padded


def _for_tensor_cores(numbers: Tensor, precision: str) -> Tensor:
    """Rounds as the device function `language.tensor_cores.for_tensor_cores` does."""
    if precision != "tf32":
        return numbers
    rounded = (numbers.view(torch.int32) + 0x1000).bitwise_and_(-0x2000).view(torch.float32)
    return torch.where(numbers.isnan(), numbers, rounded)


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
    panels = Panels(config, _planes(weight), _planes(initial), shared)
    run = _every_step(recurrence_step_kernel, config, states[0], shared | panels.arguments)
    tensors = inputs, states, panels.states, resets
    x, h, both, cuts = (_by_step(tensor, run, len(states)) for tensor in tensors)
    run(inputs=x[0], states=h[0], before=panels.first, after=both[1], resets=cuts[0])
    x, h, both, cuts = (_by_step(tensor, run, len(states)) for tensor in tensors)
    for t in range(1, len(states)):
        run(inputs=x[t], states=h[t], before=both[t % 2], after=both[1 - t % 2], resets=cuts[t])


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
    adjoint = _planes(weight.transpose(0, 1))
    if weight.ndim == 3:
        adjoint = torch.stack((adjoint[0], -adjoint[1]))
    none = torch.zeros_like(_planes(states[0]))
    panels = Panels(config, adjoint, none, shared)
    run = _every_step(recurrence_step_backward_kernel, config, states[0], shared | panels.arguments)
    tensors = grad, states, grad_inputs, panels.states, resets
    g, h, d, both, cuts = (_by_step(tensor, run, len(states)) for tensor in tensors)
    last = len(states) - 1
    run(
        grad=g[last], states=h[last], grad_inputs=d[last], before=panels.first,
        after=both[1 - last % 2], resets=cuts[last],
    )  # fmt: skip
    g, h, d, both, cuts = (_by_step(tensor, run, len(states)) for tensor in tensors)
    for t in range(last - 1, -1, -1):
        run(
            grad=g[t], states=h[t], grad_inputs=d[t], before=both[t % 2], after=both[1 - t % 2],
            resets=cuts[t + 1],
        )  # fmt: skip


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
