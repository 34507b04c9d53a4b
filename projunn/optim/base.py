"""The optimizer step of a unitary parameter, common to every rule.

    gradient -> direction (the rule's momentum, second moments)    n x n, as torch.optim has it
             -> low-rank factors X Y^H of -lr direction            projunn_kernels.fused_step_: all
             -> retraction of W + X Y^H, in place                  parameters of one shape together
             -> once in a while a polish against drift             projunn_kernels.polish_

Every other parameter is handed to the rule's plain optimizer, that of `torch.optim` if it has one.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from projunn.manifold import MATRIX_DTYPES, UnitaryParameter, view_like
from projunn.noticing import paths_of
from projunn.optim import stored
from projunn.optim.by_kernels import KernelRule
from projunn.optim.compiled import fill_plain, fill_unitary, traced_step
from projunn.optim.gradient import DenseGradient, FactoredGradient
from projunn.optim.gradient.dense import stored_like
from projunn.optim.gradient.factored import Factors
from projunn.optim.member import COUNTERS, Member
from projunn.optim.options import (
    WARM,
    angle_of_each,
    check_averages,
    check_edited,
    check_options,
    check_rates,
    filled_up,
    rates_of_now,
    warn_of_misspelt,
    whole,
)
from projunn.optim.recognition import check_parameter, recognise_again, recognise_parameters
from projunn.optim.seen import Seen
from projunn.optim.sharded import local_member, local_part
from projunn.optim.together import Together
from projunn.optim.whole import Counts, count_unitary, is_trained, watch_wholes
from projunn.parameter import is_unitary, notice
from projunn.shards import is_sharded
from projunn_kernels import orthonormalize, private, seeded_normal
from projunn_kernels.precision import in_full_precision, without_autocast


class UnitaryOptimizer(torch.optim.Optimizer):
    """Base of the optimizers: a subclass names the plain rule and gives the direction that it takes."""

    plain_rule: ClassVar[Any]  # the optimizer of all other parameters, a class of torch.optim or alike
    keeps_unitary: ClassVar[bool] = True
    takes_sketches: ClassVar[bool] = True  # whether its rule can do without the entries of a gradient
    normalizes: ClassVar[bool] = False  # whether the entries of its directions are about 1 in size
    _counts: Counts = Counts()  # its unitary parameters, as the last step found them
    _elsewhere: int = 0  # unitary parameters that other processes train: see `whole`
    _checked: tuple[tuple[Any, ...], ...] = ()  # the options of its groups, as they were checked
    _fresh: tuple[int, ...] = ()  # parameters, by index, whose averages were created in this step
    _plans: tuple[Any, ...] = ()  # what its traced steps refer to: see `compiled`
    _together: Together | None = None  # what is kept from step to step
    _seen: Seen | None = None  # the parameters of the last step
    # For parameters that have not stepped since their state was loaded: the ``averages`` and the
    # ``factorization`` that it was made with.
    _loaded: Mapping[Tensor, tuple[str, str]] = MappingProxyType({})
    _polishes: bool = True  # False while a step is captured in which no polish can be due

    def __init__(
        self,
        params: Iterable[Any],
        rule_options: dict[str, Any],
        *,
        rank: int,
        retraction: str,
        factorization: str,
        averages: str,
        unitary_lr: float | Tensor | None,
        polish_every: int | None,
        **more_options: Any,
    ) -> None:
        self._plain = self.plain_rule([torch.zeros(0)], **rule_options)
        rank, polish_every = whole(rank), whole(polish_every)
        defaults = {
            **self._plain.defaults,
            **more_options,
            "rank": rank,
            "retraction": retraction,
            "factorization": factorization,
            "averages": averages,
            "unitary_lr": unitary_lr,
            "polish_every": polish_every,
            "default_angle": angle_of_each(0) if self.normalizes else None,
        }
        super().__init__(params, defaults)
        watch_wholes()

    def _averages(self, group: dict[str, Any]) -> dict[str, bool]:
        """The names of the rule's averages of one unitary parameter; True for those of squares.

        A rule without any steps along the gradient itself.
        """
        raise NotImplementedError

    def _direction(
        self, matrices: DenseGradient, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        """The rule's step direction for one unitary parameter, like ``grad``; updates ``state``."""
        raise NotImplementedError

    def _kernel_rule(self, group: dict[str, Any]) -> KernelRule | None:
        """The rule as kernels follow it; None if they cannot, or if it has no averages."""
        return None

    def _factored_direction(self, gradient: FactoredGradient, group: dict[str, Any]) -> Factors:
        """The rule's step direction for a sketched gradient, in factors; updates ``gradient.state``."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for name in ("rank", "polish_every"):
            if name in param_group:
                param_group[name] = whole(param_group[name])
        check_options({**self.defaults, **param_group})
        warn_of_misspelt(param_group, self.defaults)
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        if any(group["default_angle"] is None for group in self.param_groups):  # an older version's
            added["default_angle"] = None
        # Schedulers change lr; an explicit unitary_lr moves in proportion to it.
        lr = added["lr"]
        added.setdefault("base_lr", lr.clone() if isinstance(lr, Tensor) else lr)
        try:
            recognise_parameters(added["params"])
            if any(isinstance(p, UnitaryParameter) for p in added["params"]):
                check_rates(added)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._count_unitary()

    def _count_unitary(self) -> bool:
        """Count the unitary parameters, on whose number the default of their learning rate depends.

        Those that are frozen or empty turn nothing, and do not count for that.  True if there are fewer.
        """
        counts = count_unitary(self.param_groups)
        if fewer := counts.every < self._counts.every:
            recognise_again(self.param_groups, self._counts.held)
        self._counts = counts
        for group in self.param_groups:
            if group["default_angle"] is not None:
                group["default_angle"] = angle_of_each(counts.trained + self._elsewhere)
        return fewer

    def count_elsewhere(self, count: int) -> None:
        """Sets how many trained unitary parameters other processes step, for ``unitary_lr``."""
        if count != self._elsewhere:
            self._elsewhere = count
            self._count_unitary()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step of every parameter that has a gradient; the same inside of ``torch.autocast``.

        Args:
            closure: as in `torch.optim`: evaluates the model again and returns the loss.

        Returns:
            What ``closure`` returns, or None.

        Raises:
            TypeError: a unitary parameter is in half precision, or has a sparse gradient of another kind
                than `projunn.nn.select_blocks` makes or, under ``torch.compile``, one that is not dense.
            ValueError: the rule cannot take a sketched gradient with these options, or "lsi" or "column"
                cannot draw on the host, as steps are counted on a GPU (capturable, compiled).
            RuntimeError: a CUDA graph is being captured, and the step would have to wait for the device.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            traced_step(self)
        elif private.is_autocast_on():
            without_autocast(self._eager_step)
        else:
            self._eager_step()
        return loss

    def _eager_step(self) -> None:
        self.check_options()
        members = self._members()
        self._unitary_step(members, keep=True)
        self._plain_step()

    def check_options(self) -> None:
        """Raises ValueError if an option of a group was set to what it cannot be."""
        self._checked = check_edited(self.param_groups, self._checked)

    def _members(self) -> list[Member]:
        """The unitary parameters that have a gradient."""
        seen = None if self._seen is None else self._seen.again(self)
        if seen is not None:
            return seen
        members, count, trained, index = [], 0, 0, -1
        kept: dict[int, Member] = self.__dict__.setdefault("_kept", {})
        for group in self.param_groups:
            for p in group["params"]:
                index += 1
                if not is_unitary(p):
                    continue
                count += 1
                trained += is_trained(p)
                if p.dtype not in MATRIX_DTYPES:  # the module was converted since
                    check_parameter(p)
                if (grad := p.grad) is None:
                    continue
                if is_sharded(p):
                    members.append(local_member(index, p, self.state[p], group))
                    continue
                member, state = kept.get(index), self.state[p]
                if member is None or not member.is_of(p, state, group):
                    member = kept[index] = Member(index, p, grad, state, group)
                member.grad = grad
                members.append(member)
        if (count, trained) != self._counts[:2] and self._count_unitary():
            return self._members()  # of which a conversion of the module may have changed the class
        self._seen = Seen.of(self, members, count)
        return members

    def _unitary_step(self, members: list[Member], keep: bool = False) -> None:
        if not members:
            return
        arrived = [member.parameter for member in members if "step" not in member.state]
        if arrived:
            event = f"At the first step of {type(self).__name__}"
            notice(arrived, event, paths_of(self.param_groups), kept=True)
        kept = self._together
        if kept is None or not kept.renew(self, members):
            kept = Together(self, members, keep)
            if keep:
                self._together = kept
        kept.step(self)
        if self._fresh:
            done = {member.index for member in members}
            self._fresh = tuple(index for index in self._fresh if index not in done)

    def _init_group(self, group: dict[str, Any], *lists: list[Any], unitary: str = "") -> Any:
        """Called when Dynamo traces a step: see `projunn.optim.compiled`."""
        if unitary:
            return fill_unitary(self, group, *lists, kind=unitary)
        return fill_plain(self, group, *lists)

    def _plain_step(self) -> None:
        if self._seen is not None and self._seen.only_unitary:
            return
        params = ([p for p in g["params"] if not is_unitary(p)] for g in self.param_groups)
        groups = [{**g, "params": own} for g, own in zip(self.param_groups, params, strict=True)]
        if not any(group["params"] for group in groups):
            return
        if not hasattr(self, "_plain"):  # pickling and deepcopy leave it out
            self._plain = self.plain_rule([torch.zeros(0)])
        self._plain.param_groups, self._plain.state = groups, self.state
        # Below its decorators: hooks on the steps of all optimizers run for this optimizer's own.
        differentiable = self.defaults.get("differentiable", False)
        with torch.set_grad_enabled(differentiable), stored.explained(groups, self.state):
            inspect.unwrap(self.plain_rule.step)(self._plain)

    def _complete_state(self, member: Member, on_device: bool = False) -> None:
        """Create what the state of a parameter lacks, as zeros; the warm basis as a random one."""
        p, state, group = member.parameter, member.state, member.group
        averages = self._averages(group)
        wanted = (*averages, group["averages"], group["rank"], group["factorization"])
        if member.complete == (*wanted, len(state)):
            return
        plain = stored.take_over(p, state, averages, group["maximize"])
        member.start_counting(on_device)
        view = view_like(p, p.detach())
        made_for = plain or member.made_for or self._loaded.get(p)
        if averages:
            held = made_for is not None and not averages.keys().isdisjoint(state)
            before = made_for[0] if made_for is not None and held else None
            check_averages(p, group["averages"], before)
        for name, squares in averages.items():
            if name in state:
                continue
            dtype = view.dtype.to_real() if squares else view.dtype
            average = torch.zeros(view.shape, dtype=dtype, device=p.device)
            state[name] = average if squares else stored_like(p, average)
            self._fresh = (*self._fresh, member.index)
        if made_for and made_for[1] == "tangent" != group["factorization"]:  # a user has set another
            for name in WARM["tangent"]:
                state.pop(name, None)
        if group["factorization"] in WARM:
            self._start_basis(member, group["factorization"])
        if WARM["tangent"][0] in state:
            self._start_basis(member, "tangent")
        member.complete = (*wanted, len(state))
        kind = group["averages"] if averages or made_for is None else made_for[0]
        member.made_for = kind, group["factorization"]

    def _start_basis(self, member: Member, factorization: str) -> None:
        """Create the warm basis of a factorization and its probe, where there are none of this rank."""
        p, state = member.parameter, member.state
        view = view_like(p, p.detach())
        *batch, m, n = view.shape
        rows = {"subspace": [m], "single_pass": [m, n], "tangent": [max(m, n)]}[factorization]
        shape = (*batch, sum(rows), min(member.group["rank"], m, n))
        basis_name, probe_name = WARM[factorization]
        if probe_name not in state or state[probe_name].shape[: len(shape)] != shape:
            drawn = seeded_normal(view, shape, member.index).split(rows, -2)
            probe = stored_like(p, torch.cat([*map(orthonormalize, drawn)], -2))
            state[probe_name], state[basis_name] = probe, probe.clone()

    def __repr__(self) -> str:
        """As in `torch.optim`, with the rates that ``unitary_lr`` stands for now."""
        groups = iter(self.param_groups)

        def with_rate(found: re.Match[str]) -> str:
            rates = rates_of_now(next(groups))
            return f"{found[0]}, {rates}" if rates else found[0]

        return re.sub("unitary_lr: .*", with_rate, super().__repr__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also called by ``load_state_dict`` and deepcopy."""
        super().__setstate__(state)
        # Older versions lacked some options.
        if "defaults" in state:
            fresh: Any = type(self)
            self.defaults = {**fresh([torch.zeros(0)]).defaults, **self.defaults}
        for group in self.param_groups:
            group.setdefault("default_angle", None)  # whose default was lr / 32
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group.setdefault("base_lr", group.get("initial_lr", group["lr"]))
        self._loaded = stored.kinds_of_state(self.param_groups, self.state, self.param_groups)
        self._count_unitary()
        # Older versions left bases as QR returns them, column by column, and counted in float32, to
        # which PyTorch converts counters that it loads.
        for p, own in self.state.items():
            if isinstance(p, UnitaryParameter):
                for name, value in own.items():
                    if isinstance(value, Tensor):
                        own[name] = value.contiguous().to(COUNTERS.get(name, value.dtype))

    def state_dict(self) -> dict[str, Any]:
        """As in `torch.optim`, with an entry for each parameter once one has state.

        A rule may keep nothing of other parameters, and PyTorch's distributed checkpoints refuse to load
        state that has some of the parameters alone.
        """
        saved = super().state_dict()
        if saved["state"]:
            for index in (i for group in saved["param_groups"] for i in group["params"]):
                saved["state"].setdefault(index, {})
        return saved

    @in_full_precision
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` of this rule returned, or that of `torch.optim` or an older version.

        Options that it lacks keep their values.  State of another rank, or of another kind of gradients
        (dense, sketched), is converted.  A warning names plain parameters with state of unitary ones.

        Raises:
            ValueError: state of matrices of another shape, or of another rule.
        """
        groups = state_dict["param_groups"]
        stored.check_rule(type(self), state_dict["state"])
        filled = filled_up(groups, self.param_groups)
        for own, loaded in zip(filled, groups, strict=True):
            if "unitary_lr" in loaded and "default_angle" not in loaded:  # of an older version
                own["default_angle"] = None
        super().load_state_dict({**state_dict, "param_groups": filled})
        stored.warn_of_plain(self.param_groups, self.state)
        self._loaded = stored.kinds_of_state(self.param_groups, self.state, groups)
        saved = [state_dict["state"].get(i, {}) for g in groups for i in g["params"]]
        for group in self.param_groups:
            for p in group["params"]:
                given = saved.pop(0)
                if not isinstance(p, UnitaryParameter) or not self.state.get(p):
                    continue
                for name in COUNTERS:  # the numbers that PyTorch rounded to the dtype of p
                    if isinstance(given.get(name), Tensor):
                        self.state[p][name].copy_(given[name])
                part, state = local_part(p, self.state[p]) if is_sharded(p) else (p, self.state[p])
                stored.fit_state(part, state, self._averages(group), group["maximize"])

    def skipped_steps(self) -> int:
        """The number of steps of single matrices that were not taken so far.

        A step is not taken if its gradient is not finite or its result is not determined to working
        precision: W + D is singular ("polar"), or an angle is above eps^-1/2 ("exp").  The counters live
        on the devices of the parameters; this call reads them, and so waits for the devices.  Of sharded
        parameters they count the matrices of this process.
        """
        return int(sum(s["skipped"].item() for s in self.state.values() if "skipped" in s))
