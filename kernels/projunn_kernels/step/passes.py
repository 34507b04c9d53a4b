"""Steps of matrices that do not fit a program: a launch for each pass, for all parameters of one shape.

    adjoint_product   partial sums of D^H R                      reads D
    orthonormal       Y = orth(D^H R)
    product           X = D Y                                    reads D
    adjoint_product   partial sums of W^H X                      reads W
    basis             Q and T = Q F^H of the step -rate X Y^H
    rotate_rows       W += (W Q) T^H                             reads and writes W
    orthonormal       S = orth(X), for k > 1
    warm_basis        R <- S + 0.01 probe; counts the steps that were not taken

What lies between the passes has k columns.  For k > 8 the passes are products of tiles, W is read once
more, and an orthonormal basis is a few launches and products of PyTorch
(`projunn_kernels.factorization.rows`).
"""

import torch
from torch import Tensor

from projunn_kernels.factorization.launch import orthonormal_launch
from projunn_kernels.launching import Chain, Launch, Matrices, address_table
from projunn_kernels.products.launch import adjoint_launch, product_launch
from projunn_kernels.retraction.launch import rotation_launch, rows_launch
from projunn_kernels.step.arguments import FusedStep
from projunn_kernels.warm_basis.launch import warm_bases_launch


class Passes:
    """The launches of a step, made once.

    Args:
        step: the step, without ``active``: weights (*batch, m, n), m <= n, directions, bases
            (*batch, m, k), k <= MAX_MANY, all contiguous, and counters.
    """

    def __init__(self, step: FusedStep) -> None:
        directions = Matrices.of_all(step.directions, step.pairs)
        weights, bases = (Matrices.of_all(t, step.pairs) for t in (step.weights, step.bases))
        k = bases.sample.shape[-1]
        self._pull, pulled = adjoint_launch(directions, k, bases.base, bases=True)
        orthonormal, right = orthonormal_launch(pulled)
        self._push, left = product_launch(directions, right)
        pull_weight, partial = adjoint_launch(weights, k, left)
        self._turn, rotation = rotation_launch(
            weights, right, partial, step.retraction, step.rate, step.scale
        )
        rows = rows_launch(weights, rotation)
        again: list[Launch | Chain] = []
        warm = left
        if k > 1:
            run, warm = orthonormal_launch(left.unsqueeze(1))
            again.append(run)
        batch = step.weights[0].shape[: -3 if step.pairs else -2]
        shape = batch if len(step.weights) == 1 else (len(step.weights), *batch)
        self._mask = rotation.taken.view(torch.bool).view(shape)
        tables = [address_table(t) for t in (step.probes, step.skipped, step.missed)]
        again.append(warm_bases_launch(warm, bases, rotation.taken, tables))
        self._between = orthonormal, pull_weight
        self._last = rows, *again

    def __call__(self, step: FusedStep, directions: Tensor | None = None) -> Tensor:
        """Take the step: directions, rate and scale may be others than those of the first.

        Args:
            step: the step.
            directions: the table of the addresses of its directions, if it is there already.

        Returns:
            The mask of the steps taken, which the next call overwrites.
        """
        listed = address_table(step.directions) if directions is None else directions
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
        return self._mask
