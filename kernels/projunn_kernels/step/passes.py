"""Steps of matrices that do not fit a program: a launch for each pass, for all parameters of one shape.

    adjoint_product   partial sums of D^H R                      reads D
    orthonormal       Y = orth(D^H R)
    product           X = D Y                                    reads D
    adjoint_product   partial sums of W^H X                      reads W
    basis             Q and T = Q F^H of the step -rate X Y^H
    rotate_rows       W += (W Q) T^H                             reads and writes W
    orthonormal       S = orth(X), for k > 1
    warm_basis        R <- S + 0.01 probe; counts the steps that were not taken

What lies between the passes has k columns.  The launches are kept with the memory between them, so that
the next step of the same tensors prepares nothing.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from projunn_kernels import selfcheck
from projunn_kernels.configs import choice
from projunn_kernels.factorization.launch import orthonormal_launch
from projunn_kernels.launching import Launch, Matrices, address_table, capturing
from projunn_kernels.products.launch import adjoint_launch, product_launch
from projunn_kernels.retraction.launch import rotation_launch, rows_launch
from projunn_kernels.step.arguments import FusedStep
from projunn_kernels.warm_basis.launch import warm_bases_launch

_MAX_KEPT = 256
_kept: OrderedDict[tuple[Any, ...], "Passes"] = OrderedDict()


class Passes:
    """The launches of a step, made once.

    Args:
        step: the step, without ``active``: weights (B, m, n), m <= n, directions, bases (B, m, k),
            k <= MAX_RANK, all contiguous, and counters.
    """

    def __init__(self, step: FusedStep) -> None:
        directions, weights = Matrices.of_all(step.directions), Matrices.of_all(step.weights)
        k = step.bases[0].shape[-1]
        self._pull, pulled = adjoint_launch(directions, k, address_table(step.bases), bases=True)
        orthonormal, right = orthonormal_launch(pulled)
        self._push, left = product_launch(directions, right)
        pull_weight, partial = adjoint_launch(weights, k, left)
        self._turn, rotation = rotation_launch(
            weights, right, partial, step.retraction, step.rate, step.scale
        )
        rows = rows_launch(weights, rotation)
        again: list[Launch] = []
        warm = left
        if k > 1:
            run, warm = orthonormal_launch(left.unsqueeze(1))
            again.append(run)
        self.taken = rotation.taken
        counters = address_table(step.skipped), address_table(step.missed)
        again.append(warm_bases_launch(warm, step.bases, step.probes, rotation.taken, counters))
        self._between = orthonormal, pull_weight
        self._last = rows, *again

    def __call__(self, step: FusedStep) -> Tensor:
        """Take the step: directions, rate and scale may be others than those of the first.

        Returns:
            The mask of the steps taken, of all parameters in turn.  The next call overwrites it.
        """
        listed = address_table(step.directions)
        orthonormal, pull_weight = self._between
        self._pull(listed=listed)
        orthonormal()
        self._push(listed=listed)
        pull_weight()
        if step.scale is None:
            self._turn(rate=step.rate)
        else:
            self._turn(rate=step.rate, rate_tensor=step.scale)
        for run in self._last:
            run()
        return self.taken.view(torch.bool)


def take(step: FusedStep) -> Tensor:
    """Take a step by the launches that are kept for its tensors, or new ones; the mask of those taken.

    Those of a step that is captured are not kept: their memory belongs to the graph.
    """
    device = step.weights[0].device
    if capturing(device) or not choice.settled() or selfcheck.is_checking():
        return Passes(step)(step)
    key = _key(step)
    passes = _kept.get(key)
    if passes is None:
        passes = _kept[key] = Passes(step)
        while len(_kept) > _MAX_KEPT:
            _kept.popitem(last=False)
    else:
        _kept.move_to_end(key)
    return passes(step)


def _key(step: FusedStep) -> tuple[Any, ...]:
    """What the launches depend on: where the tensors are, their sizes and dtypes, and the options."""
    first, lists = step.weights[0], (step.weights, step.bases, step.probes, step.skipped, step.missed)
    addresses = [tensor.data_ptr() for tensors in lists for tensor in tensors]
    sizes = first.shape, step.bases[0].shape, first.dtype, step.directions[0].dtype, first.device
    options = step.retraction, step.scale is not None, choice.generation(), _stream(first)
    return (*addresses, *sizes, *options)


def _stream(tensor: Tensor) -> int:
    """The stream that launches go to: what lies between the passes of two streams must not be shared."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
