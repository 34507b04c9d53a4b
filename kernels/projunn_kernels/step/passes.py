"""Steps that are not one program: a launch for each pass, for all parameters of one shape.

    adjoint_product   partial sums of D^H R                      reads D, or makes it: `rule_product`
    orthonormal       Y = orth(D^H R)
    product           X = D Y                                    reads D
    adjoint_product   partial sums of W^H X                      reads W
    basis             Q and T = Q F^H of the step -rate X Y^H;  S = orth(X)
    rotate_rows       W += (W Q) T^H                             reads and writes W
                      R <- S + 0.01 probe; counts the steps that were not taken

Of rank 1, and where rows are short, programs make the columns that they need themselves, with two
launches less (`projunn_kernels.step.kernels.rows`):

    adjoint_product   partial sums of D^H R
    unit_product      Y = orth(D^H R),  X = D Y                  reads D
    adjoint_product   partial sums of W^H X
    plane_rows        Q and T,  W += (W Q) T^H,  R               reads and writes W

With m > n Q and T are of the left side, which takes a read of W more:

    product           W Y                                        reads W
    basis             Q and T = Q F^H of the step -rate W Y X^H;  S = orth(X)
    adjoint_product   partial sums of W^H Q, added up by PyTorch reads W
    rank_update       W += T (W^H Q)^H                           reads and writes W
    warm_basis        R <- S + 0.01 probe; counts the steps that were not taken

Of a direction that is in factors already, X Y^H, the first three are not needed; where its bases have
other columns than X, a launch of `warm_basis` makes them, as it does for k > 8.

What lies between the passes has k columns.  For k > 8 the passes are products of tiles, W is read once
more, and a basis is a few launches and a product of PyTorch (`projunn_kernels.factorization.rows`), as
orthonormal as one Cholesky factor makes it.
"""

from dataclasses import replace

import torch
from torch import Tensor

from projunn_kernels.configs.problem import Problem, device_of
from projunn_kernels.constants import MAX_RANK
from projunn_kernels.factorization.launch import orthonormal_launch
from projunn_kernels.keeping import unread
from projunn_kernels.launching import Chain, Launch, Matrices, address_table
from projunn_kernels.products.launch import adjoint_launch, product_launch
from projunn_kernels.retraction.launch import Warm, columns_launch, rotation_launch, rows_launch
from projunn_kernels.rules.arguments import RuleStep
from projunn_kernels.rules.launch import FollowedProduct
from projunn_kernels.step.arguments import FactoredStep, FusedStep, batch_of
from projunn_kernels.step.row_tiles import fits_rows
from projunn_kernels.step.rows import plane_rows_launch, unit_product_launch
from projunn_kernels.warm_basis.launch import warm_bases_launch


class Passes:
    """The launches of a step, made once.

    Args:
        step: the step, without ``active``: weights (*batch, m, n), directions, bases
            (*batch, m, k), k <= MAX_MANY, all contiguous, and counters.
        rule: what finds the directions from gradients, which ``step`` has in their place, k <= MAX_RANK;
            its averages are contiguous too.  It counts what is ``missed``.
    """

    def __init__(self, step: FusedStep, rule: RuleStep | None = None) -> None:
        bases = Matrices.of_all(step.bases, step.pairs)
        k = bases.sample.shape[-1]
        self._follow: FollowedProduct | None = None
        if rule is None:
            directions = Matrices.of_all(step.directions, step.pairs)
            self._pull, pulled = adjoint_launch(directions, k, bases.base, bases=True)
        else:
            self._follow = FollowedProduct(rule, bases.base, k)
            pulled = self._follow.partial
            directions = self._follow.directions
            # What the rule has counted must not be counted again.
            step = replace(step, missed=[unread(t) for t in step.missed])
        self._uncounted = step.missed
        self._orthonormal: Launch | Chain | None = None
        if _short_rows(directions, k):
            self._push, right, left = unit_product_launch(directions, pulled)
        else:
            self._orthonormal, right = orthonormal_launch(pulled, times=1)
            self._push, left = product_launch(directions, right)
        self._turn = _Turn(step, bases, left, right, left)

    def __call__(
        self,
        step: FusedStep,
        directions: Tensor | None = None,
        rule: RuleStep | None = None,
        stored: Tensor | None = None,
    ) -> Tensor:
        """Take the step: directions, rate and scale may be others than those of the first.

        Args:
            step: the step.
            directions: the table of the addresses of its directions, if it is there already.
            rule: that of this step, if it follows one: gradients and numbers may be others too.
            stored: a place for the directions that the rule finds, if others want to see them.

        Returns:
            The mask of the steps taken, which the next call overwrites.
        """
        listed = address_table(step.directions) if directions is None else directions
        assert (self._follow is None) == (rule is None)
        given = {"listed": listed}
        if self._follow is None or rule is None:
            self._pull(listed=listed)
        else:
            given = {"matrix": self._follow(rule, listed, stored)}
        if self._orthonormal is not None:
            self._orthonormal()
        self._push(**given)
        return self._turn(step)


class FactoredPasses:
    """The launches of a step along factors, made once.

    Args:
        step: the step: weights (*batch, m, n) and bases, contiguous, factors of up to MAX_MANY columns,
            and counters.
    """

    def __init__(self, step: FactoredStep) -> None:
        bases = Matrices.of_all(step.bases, step.pairs)
        columns: list[Tensor] = []
        self._places: list[Tensor] = []
        for factors in (step.lefts, step.rights, step.sketched):
            *batch, length, k = factors[0].shape
            own = factors[0].new_empty(len(factors), *batch, k, length)
            columns.append(own.view(-1, k, length))
            self._places += own.mT.unbind()
        self._turn = _Turn(step, bases, *columns)

    def __call__(self, step: FactoredStep) -> Tensor:
        """Take the step: factors, rate and scale may be others than those of the first.

        Returns:
            The mask of the steps taken, which the next call overwrites.
        """
        torch._foreach_copy_(self._places, [*step.lefts, *step.rights, *step.sketched])
        return self._turn(step)


class _Turn:
    """The launches that follow X and Y: the retraction and the bases of the next step.

    Args:
        step: the step; rate and scale of a call may be others.
        bases: its bases.
        left, right: X (A, k, m) and Y (A, k, n) of all matrices of the parameters.
        sketched: S, (A, r, m).
    """

    def __init__(
        self,
        step: FusedStep | FactoredStep,
        bases: Matrices,
        left: Tensor,
        right: Tensor,
        sketched: Tensor,
    ) -> None:
        weights = Matrices.of_all(step.weights, step.pairs)
        _, m, n = weights.sample.shape
        k, r, tall = left.shape[1], sketched.shape[1], m > n
        tables = [address_table(t) for t in (step.probes, step.skipped, step.missed)]
        way = step.retraction, step.rate, step.scale
        if tall:
            self._pull, moved = product_launch(weights, right)
            factor, pulled = left, moved.unsqueeze(1)
        else:
            self._pull, pulled = adjoint_launch(weights, k, left)
            factor = right
        self._turn: Launch | Chain
        self._last: tuple[Launch | Chain, ...] = ()
        warm = Warm.of(sketched, bases.base, *tables) if r == k <= MAX_RANK else None
        if warm is not None and not tall and _short_rows(weights, k):
            self._turn, taken = plane_rows_launch(weights, right, pulled, warm, *way)
        else:
            self._turn, rotation = rotation_launch(weights, factor, pulled, *way, warm=warm)
            taken = rotation.taken
            if warm is not None and not tall:
                self._last = (rows_launch(weights, rotation, warm),)
            else:
                update = columns_launch if tall else rows_launch
                self._last = (update(weights, rotation),)
                if warm is None and r > 1:
                    run, sketched = orthonormal_launch(sketched.unsqueeze(1), times=1)
                    self._last = run, *self._last
                elif warm is not None and r > 1:
                    sketched = warm.found
                self._last = *self._last, warm_bases_launch(sketched, bases, taken, tables)
        self._mask = taken.view(torch.bool).view(batch_of(step))

    def __call__(self, step: FusedStep | FactoredStep) -> Tensor:
        """The mask of the steps taken, which the next call overwrites."""
        self._pull()
        if step.scale is None:
            self._turn(rate=step.rate)
        else:
            self._turn(rate=step.rate, rate_tensor=step.scale)
        for run in self._last:
            run()
        return self._mask


def _short_rows(matrices: Matrices, k: int) -> bool:
    """Whether the programs of a step of rank k make the columns that they need."""
    like = matrices.sample
    _, m, n = like.shape
    problem = Problem("plane_rows", like.is_complex(), k, m, n, matrices.count)
    return fits_rows(problem, device_of(like.device))
