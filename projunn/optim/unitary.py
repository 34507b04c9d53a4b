"""The optimizer step of a unitary parameter, common to every rule.

    gradient -> direction (the rule's momentum, second moments)    n x n, as torch.optim has it
             -> low-rank factors X Y^H of -lr direction            projunn_kernels.fused_step_: all
             -> retraction of W + X Y^H, in place                  parameters of one shape together
             -> once in a while a polish against drift             projunn_kernels.polish_

Every other parameter is handed to `torch.optim`'s own optimizer, unchanged.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from projunn.drift import polish_period
from projunn.factored import FactoredTensor
from projunn.lowrank import FACTORIZATIONS, factorize
from projunn.manifold import (
    MATRIX_DTYPES,
    UnitaryParameter,
    dtype_names,
    view_like,
)
from projunn.optim.factored import FactoredGradient, Factors, truncated
from projunn.optim.matrices import Matrices, active_matrices, stored_like
from projunn.optim.traced import Member, fill_plain, fill_unitary, traced_step
from projunn_kernels import (
    RETRACTIONS,
    FactoredStep,
    FusedStep,
    factored_step_,
    fused_step_,
    orthonormalize,
    polish_,
    polish_when_due_,
    retract_,
    seeded_normal,
)

# The default unitary learning rate is lr / 32: lr_divider in the experiments of arXiv 2203.05483.
_LR_DIVIDER = 32


class UnitaryOptimizer(torch.optim.Optimizer):
    """Base of the optimizers: subclasses name torch's rule and give the direction it takes."""

    plain_rule: ClassVar[Any]  # the class in torch.optim
    # Parameters, by index, whose averages were created in this step and hold nothing yet.
    _fresh: tuple[int, ...] = ()
    _plans: tuple[Any, ...] = ()  # of its traced steps

    def __init__(
        self,
        params: Iterable[Any],
        rule_options: dict[str, Any],
        *,
        rank: int,
        retraction: str,
        factorization: str,
        unitary_lr: float | Tensor | None,
        polish_every: int | None,
        **more_options: Any,
    ) -> None:
        self._plain = self.plain_rule([torch.zeros(0)], **rule_options)
        defaults = {
            **self._plain.defaults,
            **more_options,
            "rank": rank,
            "retraction": retraction,
            "factorization": factorization,
            "unitary_lr": unitary_lr,
            "polish_every": polish_every,
        }
        super().__init__(params, defaults)

    def _averages(self, group: dict[str, Any]) -> dict[str, bool]:
        """The rule's averages of one unitary parameter, by name; whether it is one of squares."""
        raise NotImplementedError

    def _direction(
        self, matrices: "Matrices", grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        """The rule's step direction for one unitary parameter, like ``grad``; updates ``state``."""
        raise NotImplementedError

    def _factored_direction(self, gradient: FactoredGradient, group: dict[str, Any]) -> Factors:
        """The same in factors, for a sketched gradient; updates ``gradient.state``."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = {**self.defaults, **param_group}
        _check_options(group)
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        # Schedulers change lr; an explicit unitary_lr moves in proportion to it.
        lr = added["lr"]
        added.setdefault("base_lr", lr.clone() if isinstance(lr, Tensor) else lr)
        try:
            for p in added["params"]:
                _check_parameter(p)
        except TypeError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` as in `torch.optim`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            traced_step(self)
        else:
            self._plain_step()
            self._unitary_step(self._members())
        return loss

    def _members(self) -> list[Member]:
        """The unitary parameters that have a gradient."""
        every = enumerate((p, group) for group in self.param_groups for p in group["params"])
        return [
            (index, p, p.grad, self.state[p], group)
            for index, (p, group) in every
            if isinstance(p, UnitaryParameter) and p.grad is not None
        ]

    def _unitary_step(self, members: list[Member]) -> None:
        together: dict[tuple[Any, ...], list[Matrices]] = {}
        for index, p, gradient, state, group in members:
            if isinstance(gradient, FactoredTensor):
                self._factored_step(p, gradient, state, group)
                continue
            matrices = self._prepare(p, gradient, state, group, index)
            if group["factorization"] == "subspace":
                together.setdefault(_likeness(matrices, group), []).append(matrices)
            else:
                self._single_step(matrices, group, index)
        for alike in together.values():
            self._fused_step(alike)
        for _, p, _, state, group in members:
            self._polish(p, state, group)
        if self._fresh:
            done = {index for index, *_ in members}
            self._fresh = tuple(index for index in self._fresh if index not in done)

    def _init_group(self, group: dict[str, Any], *lists: list[Any], unitary: bool = False) -> Any:
        """Called when Dynamo traces a step: see `projunn.optim.traced`."""
        return fill_unitary(self, group, *lists) if unitary else fill_plain(self, group, *lists)

    def _plain_step(self) -> None:
        groups = []
        for group in self.param_groups:
            plain = [p for p in group["params"] if not isinstance(p, UnitaryParameter)]
            groups.append({**group, "params": plain})
        if not any(group["params"] for group in groups):
            return
        if not hasattr(self, "_plain"):  # pickling and deepcopy leave it out
            self._plain = self.plain_rule([torch.zeros(0)])
        self._plain.param_groups, self._plain.state = groups, self.state
        self._plain.step()

    def _prepare(
        self,
        p: UnitaryParameter,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        index: int,
    ) -> Matrices:
        """The matrices of a parameter with their direction; its state as it is from now on."""
        values, active = active_matrices(p, gradient)
        self._complete_state(p, state, group, index)
        matrices = Matrices(p, values, active, state, group, index)
        state["step"] += 1
        own = matrices.rule_state()
        matrices.direction = matrices.gate(self._direction(matrices, matrices.grad, own, group))
        matrices.keep_rule_state(own)
        return matrices

    def _complete_state(
        self,
        p: UnitaryParameter,
        state: dict[str, Any],
        group: dict[str, Any],
        index: int,
        step_on_device: bool = False,
    ) -> None:
        """Create what the state of a parameter lacks, as zeros; the warm basis as a random one."""
        _start_counting(p, state, step_on_device or group.get("capturable", False))
        view = view_like(p, p.detach())
        for name, squares in self._averages(group).items():
            if name in state:
                continue
            dtype = view.dtype.to_real() if squares else view.dtype
            average = torch.zeros(view.shape, dtype=dtype, device=p.device)
            state[name] = average if squares else stored_like(p, average)
            self._fresh = (*self._fresh, index)
        if group["factorization"] == "subspace":
            rank = min(group["rank"], *view.shape[-2:])
            shape = (*view.shape[:-1], rank)
            if "probe" not in state or state["probe"].shape[: len(shape)] != shape:
                probe = stored_like(p, orthonormalize(seeded_normal(view, shape, index)))
                state["probe"], state["basis"] = probe, probe.clone()

    def _fused_step(self, alike: list[Matrices]) -> None:
        """Parameters of one shape and one rate: `projunn_kernels.fused_step_`."""
        first = alike[0]
        rate = unitary_learning_rate(first.group)
        scale = rate if isinstance(rate, Tensor) else None
        sign = -1.0 if first.group["maximize"] else 1.0
        fused_step_(
            FusedStep(
                weights=[m.stored_weight for m in alike],
                directions=[m.store(m.direction) for m in alike],
                bases=[m.state["basis"] for m in alike],
                probes=[m.state["probe"] for m in alike],
                skipped=[m.state["skipped"] for m in alike],
                rate=sign if scale is not None else sign * rate,
                scale=scale,
                retraction=first.group["retraction"],
                pairs=first.parameter.pairs,
                active=first.active,
            )
        )

    def _single_step(self, matrices: Matrices, group: dict[str, Any], index: int) -> None:
        """One parameter, its factors drawn at random or by SVD."""
        direction, state, method = matrices.direction, matrices.state, group["factorization"]
        rank = min(group["rank"], *direction.shape[-2:])
        if method == "svd":
            left, right = factorize(matrices.clean(direction), rank, "svd")
            left = matrices.gate(left)
        else:
            if state["step"].device.type != "cpu":
                raise ValueError(
                    f'factorization: "{method}" draws random numbers on the host; wanted "subspace" with'
                    " capturable=True or torch.compile"
                )
            # A function of the step and the parameter only: the same on resume and on replicas.
            seed = (1_000_003 * int(state["step"].item()) + index) % 2**32
            source = torch.Generator(direction.device).manual_seed(seed)
            left, right = factorize(direction, rank, method, generator=source)
        rate = unitary_learning_rate(group)
        left = left * (rate if group["maximize"] else -rate)
        weight = view_like(matrices.parameter, matrices.parameter.detach())
        if matrices.active is None:
            taken = retract_(weight, left, right, group["retraction"])
        else:
            blocks = weight.flatten(0, -3)
            taken = retract_(blocks, left, right, group["retraction"], matrices.active)
        state["skipped"].add_(taken.logical_not().sum())

    def _factored_step(
        self, p: UnitaryParameter, grad: FactoredTensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """A parameter with a sketched gradient: `projunn_kernels.factored_step_`."""
        if p.sketch is None:
            raise TypeError(
                f"params: a parameter of shape {tuple(p.shape)} has a gradient in factors, but belongs"
                " to no layer with sketch_rank"
            )
        _start_counting(p, state, group.get("capturable", False))
        state["step"] += 1
        gradient = FactoredGradient(p, grad, state)
        direction = truncated(*self._factored_direction(gradient, group), group["rank"])
        left, right = gradient.gate(direction)
        rate = unitary_learning_rate(group)
        sign = -1.0 if group["maximize"] else 1.0
        factored_step_(
            FactoredStep(
                weight=p.detach(),
                left=left,
                right=right,
                sketched=gradient.factors[0],
                basis=state["basis"],
                probe=state["probe"],
                skipped=state["skipped"],
                rate=sign if isinstance(rate, Tensor) else sign * rate,
                scale=rate if isinstance(rate, Tensor) else None,
                retraction=group["retraction"],
                pairs=p.pairs,
            )
        )
        p.sketch.stored_left.copy_(state["basis"])

    def _polish(self, p: UnitaryParameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        weight, period = view_like(p, p.detach()), group["polish_every"]
        if period is None:
            period = polish_period(weight)
        if not period:
            return
        if state["step"].device.type != "cpu":
            stored = p.detach() if p.pairs else weight
            polish_when_due_(stored, state["step"], period, p.pairs)
        elif p.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "capturable: got False, wanted True for the capture of a CUDA graph (or polish_every=0):"
                " with counters on the CPU the graph would polish at every replay, or at none"
            )
        elif state["step"].item() % period == 0:
            polish_(weight)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            if isinstance(p, UnitaryParameter) and p.sketch is not None and "basis" in state:
                p.sketch.stored_left.copy_(state["basis"])

    def skipped_steps(self) -> int:
        """Steps of single matrices not taken so far: not finite, or ("polar") W + D singular.

        The counters live on the devices of the parameters; this call reads them and so waits.
        """
        return int(sum(s["skipped"].item() for s in self.state.values() if "skipped" in s))


def _start_counting(p: UnitaryParameter, state: dict[str, Any], on_device: bool) -> None:
    """Create the counters of a parameter where they are missing: steps, and steps not taken."""
    if "step" not in state:
        state["step"] = torch.zeros((), device=p.device if on_device else "cpu")
        state["skipped"] = torch.zeros((), dtype=p.dtype.to_real(), device=p.device)


def _likeness(matrices: Matrices, group: dict[str, Any]) -> tuple[Any, ...]:
    """What parameters that step together have in common; those with an active list step alone."""
    p, rate = matrices.parameter, unitary_learning_rate(group)
    alone = None if matrices.active is None else id(p)
    same_rate = id(group) if isinstance(rate, Tensor) else rate
    kind = (p.shape, p.pairs, p.blocks, p.dtype, p.device, matrices.direction.dtype)
    rule = (group["rank"], group["retraction"], group["maximize"])
    return (*kind, *rule, same_rate, alone)


def unitary_learning_rate(group: dict[str, Any]) -> Any:
    """The learning rate of a group's unitary parameters: a float, or a tensor if ``lr`` is one."""
    lr, unitary_lr, base_lr = group["lr"], group["unitary_lr"], group["base_lr"]
    if unitary_lr is None:
        return lr / _LR_DIVIDER
    if isinstance(base_lr, Tensor):  # without waiting for its device
        return unitary_lr * torch.where(base_lr != 0, lr / base_lr, 1.0)
    return unitary_lr * (lr / base_lr) if base_lr else unitary_lr


def _check_options(group: dict[str, Any]) -> None:
    rank, every, unitary_lr = group["rank"], group["polish_every"], group["unitary_lr"]
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"rank: got {rank!r}, wanted a positive integer")
    for name, allowed in (("retraction", RETRACTIONS), ("factorization", FACTORIZATIONS)):
        if group[name] not in allowed:
            raise ValueError(f"{name}: got {group[name]!r}, wanted one of {', '.join(allowed)}")
    if unitary_lr is not None and not isinstance(unitary_lr, Tensor) and not unitary_lr >= 0:
        raise ValueError(f"unitary_lr: got {unitary_lr!r}, wanted a number >= 0 or None (lr / 32)")
    if every is not None and (not isinstance(every, int) or every < 0):
        raise ValueError(
            f"polish_every: got {every!r}, wanted a number of steps, 0 (never) or None (automatic)"
        )


def _check_parameter(p: Tensor) -> None:
    if isinstance(p, UnitaryParameter) and p.dtype not in MATRIX_DTYPES:
        raise TypeError(
            f"params: a unitary parameter of shape {tuple(p.shape)} is {p.dtype}, wanted one of"
            f" {dtype_names()} (use autocast for layers in lower precision)"
        )
