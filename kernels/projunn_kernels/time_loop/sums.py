"""The gradients of a time loop that are sums over time, added up a few time steps at a time.

Of z_t = U u_t + c + h_{t-1} W^T and h_t = f(z_t), with dz_t the gradient of z_t:

    dW = sum dz_t^T conj(h_{t-1}), or its factors by `projunn_kernels.sketch`
    dU = sum dz_t^T u_t      dc = sum dz_t      du_t = dz_t U      db = sum Re(conj(sgn h_t) dz_t)

U and c are real.  For them the real and imaginary parts of dz_t count as separate real columns.
"""

import torch
from torch import Tensor

from projunn_kernels.factorization import orthonormalize
from projunn_kernels.sketching import ranks
from projunn_kernels.sketching.eager import through
from projunn_kernels.time_loop.arguments import RecurrenceBackward
from projunn_kernels.time_loop.steps import Steps


class TimeSums:
    """Adds up the gradients: `add` takes some time steps, `finish` returns the sums.

    Args:
        states, initial: h_1 .. h_T and h_0, real or complex.
        call: the arguments of the backward; u, U and what is wanted are read from it.
        sums_bias: whether the gradient of b is to be summed here.
        basis: R of the sketch, real or complex, if dW is wanted as factors, else None.
        steps: the rows of each time step; by default as ``call`` says.
    """

    def __init__(
        self,
        states: Tensor,
        initial: Tensor,
        call: RecurrenceBackward,
        *,
        sums_bias: bool,
        basis: Tensor | None,
        steps: Steps | None = None,
    ) -> None:
        n = states.shape[-1]
        self.steps = Steps(states.shape, call.batch_sizes, call.resets) if steps is None else steps
        self._states, self._initial = states, initial
        self._inputs, self._input_weight = call.inputs, call.input_weight
        self._basis = basis if call.wants_weight else None
        self._group = call.group
        self._pulled: Tensor | None = None
        self._bias = torch.zeros_like(call.bias) if sums_bias and call.bias is not None else None
        # Transposed, the narrow side of a product first: the BLAS is up to five times faster.
        self._weight = states.new_zeros(n, n) if call.wants_weight and call.basis is None else None
        self._projection = self._shift = self._grad_inputs = None
        if call.input_weight is None:
            return
        self._projection = call.inputs.new_zeros(call.input_weight.shape[::-1])
        if call.wants_input_bias:
            self._shift = call.inputs.new_zeros(call.input_weight.shape[0])
        if call.wants_inputs:
            self._grad_inputs = torch.empty_like(call.inputs, memory_format=torch.contiguous_format)

    @property
    def keeps_all(self) -> bool:
        """True if `finish` needs dz_t of all time steps."""
        return self._basis is not None or self.returns_all

    @property
    def returns_all(self) -> bool:
        """True if `finish` returns dz_t of all time steps, as the gradient of the inputs."""
        return self._input_weight is None

    def add(self, begin: int, end: int, grads: Tensor) -> None:
        """Add dz_t of the time steps ``begin`` to ``end - 1``, (steps, batch, n) or their rows."""
        rows = grads if grads.ndim == 2 else grads.flatten(0, 1)
        if self._bias is not None:
            phases = self.steps.rows(self._states, begin, end).sgn()
            self._bias += (phases.conj() * rows).real.sum(0)
        if self._weight is not None:
            self._weight.addmm_(self._before(begin, end).mH, rows)
        if self._basis is not None:
            share = through([self._before(begin, end)], [rows], self._basis)
            self._pulled = share if self._pulled is None else self._pulled + share
        if self._projection is None or self._input_weight is None:
            return
        columns = torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows
        self._projection.addmm_(self.steps.rows(self._inputs, begin, end).mT, columns)
        if self._shift is not None:
            self._shift += columns.sum(0)
        if self._grad_inputs is not None:
            torch.mm(columns, self._input_weight, out=self.steps.rows(self._grad_inputs, begin, end))

    def finish(
        self, grad_initial: Tensor, grads: Tensor | None, grad_bias: Tensor | None = None
    ) -> list[Tensor]:
        """The gradients in the order of `projunn_kernels.recurrence_backward`.

        Args:
            grad_initial: the gradient of h_0.
            grads: dz_t of all time steps, of the shape of the states, if `keeps_all`.
            grad_bias: the gradient of b, if it was summed elsewhere.
        """
        results = [
            grads if self.returns_all else self._grad_inputs,
            grad_initial,
            grad_bias if self._bias is None else self._bias,
            None if self._projection is None else self._projection.mT,
            self._shift,
        ]
        if self._weight is not None:
            results.append(self._weight.mT)
        elif self._pulled is not None:
            assert grads is not None
            right = orthonormalize(ranks.total(self._pulled, self._group))
            outer, inner = self._pieces(grads)
            results += [ranks.mean(through(outer, inner, right), self._group), right]
        return [_stored(self._inputs.new_empty(0) if t is None else t) for t in results]

    def _pieces(self, grads: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """dz_t of all time steps in pieces, and h_{t-1} of the same; without copies if possible."""
        steps, count = self.steps, len(self.steps.sizes)
        panels = [(0, 1), (1, count)] if count > 1 else [(0, 1)]
        if steps.packed or any(reset is not None for reset in steps.resets):
            panels = steps.panels()
        return [steps.rows(grads, *p) for p in panels], [self._before(*p) for p in panels]

    def _before(self, begin: int, end: int) -> Tensor:
        """h_{t-1} of those time steps, (rows, n)."""
        return self.steps.before(self._initial, self._states, begin, end)


def _stored(numbers: Tensor) -> Tensor:
    """Contiguous, and complex numbers as real pairs."""
    return torch.view_as_real(numbers.contiguous()) if numbers.is_complex() else numbers.contiguous()
