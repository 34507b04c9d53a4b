"""One unitary parameter in one step of an optimizer, and what the step asks of the optimizer."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from projunn.manifold import UnitaryParameter, view_like
from projunn_kernels.backends import on_device
from projunn_kernels.batches import surely_all


def capturing(tensor: Tensor) -> bool:
    """True if a CUDA graph is being captured: then the host must not wait for the device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


# The counters of a state, and the dtypes in which they count for ever (float32 would stop at 2^24).
COUNTERS = {"step": torch.int64, "missed": torch.int64}


def counter(device: torch.device | str) -> Tensor:
    """A number of steps, 0."""
    return torch.zeros((), dtype=COUNTERS["step"], device=device)


@dataclass(eq=False)
class Member:
    """A unitary parameter that has a gradient; kept from step to step.

    Attributes:
        index: its number among all parameters of the optimizer.
        parameter, grad: the parameter and its gradient: dense, sparse or a `projunn.FactoredTensor`.
        state: its state in the optimizer.
        group: the options of its parameter group.
        gradient: what the last step made of its gradient; None before the first.
        complete: the options for which the state has been found complete, and its length then.
        made_for: ``averages`` and ``factorization`` of its group when the state was made; None if there
            is none yet.
        period: steps between two polishes by default; 0 as long as nobody has asked.
        asked: what `projunn.optim.stopping` asked last, and which of the answers are its own.
        shown: the parameters that a message is about, if ``parameter`` is a copy of them.
        blocks: those of the parameter.
    """

    index: int
    parameter: UnitaryParameter
    grad: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    gradient: Any = None
    complete: tuple[Any, ...] = ()
    made_for: tuple[str, str] | None = None
    period: int = 0
    asked: Any = None
    shown: tuple[UnitaryParameter, ...] = ()
    blocks: int = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = self.parameter.blocks

    def is_of(self, parameter: UnitaryParameter, state: dict[str, Any], group: dict[str, Any]) -> bool:
        """Whether these are its own, and the matrices of the parameter are as many as they were."""
        same = self.parameter is parameter and self.state is state and self.group is group
        return same and self.blocks == parameter.blocks

    def check_state(self) -> None:
        """Raises an error if the parameter was changed in ways that its state does not follow.

        Raises:
            TypeError: it was converted to another precision.
            ValueError: `projunn.constrain` has made another number of matrices of it.
        """
        p, skipped = self.parameter, self.state.get("skipped")  # of the precision of all the state
        if skipped is not None and skipped.dtype != p.dtype.to_real():
            raise TypeError(
                f"params: a parameter of shape {tuple(p.shape)} is {p.dtype}, and its state in the"
                f" optimizer is {skipped.dtype}; wanted an optimizer made after the conversion, or for"
                " reals optimizer.load_state_dict(optimizer.state_dict()), which converts the state"
            )
        missed, batch = self.state.get("missed"), view_like(p, p.detach()).shape[:-2]
        if missed is not None and missed.shape != batch:
            raise ValueError(
                f"params: a parameter of shape {tuple(p.shape)} has another number of matrices,"
                f" {batch.numel()}, than its state in the optimizer has, {missed.numel()}; wanted an"
                " optimizer made after projunn.constrain"
            )

    def start_counting(self, on_device: bool = False) -> None:
        """Create the counters where they are missing.

        step: steps of the parameter.  missed (*batch): those of them that each matrix did not take, as
        it had no gradient, one that is not finite, or a step that could not be taken.  skipped: how many
        steps of single matrices could not be taken.
        """
        p = self.parameter
        if "step" not in self.state:
            capturable = on_device or self.group.get("capturable", False)
            self.state["step"] = counter(p.device if capturable else "cpu")
        if "skipped" not in self.state:
            self.state["skipped"] = torch.zeros((), dtype=p.dtype.to_real(), device=p.device)
        if "missed" not in self.state:
            batch = view_like(p, p.detach()).shape[:-2]
            self.state["missed"] = torch.zeros(batch, dtype=COUNTERS["missed"], device=p.device)

    def mask(self, taken: Tensor, active: Tensor | None, sound: Tensor | None) -> Tensor | None:
        """The mask of the steps taken, (*batch), or None for all; counts what was missed.

        ``taken`` is (*batch), or with ``active`` (A,), for the matrices of that list: all others have
        missed this step.  ``sound`` (.., 1, 1) says whose averages have moved, if a rule has any: those
        have not missed it, even where the step could not be taken.
        """
        missed = self.state["missed"]
        if active is None:
            if surely_all(taken):
                return None
            if sound is not None:
                moved = sound.reshape(missed.shape) & taken.logical_not()
                missed.sub_(moved.to(missed.dtype))
            return taken
        moved = taken if sound is None else taken | sound.flatten()
        missed.add_(1)
        missed.view(-1).index_add_(0, active, moved.to(missed.dtype), alpha=-1)
        whole = torch.zeros(missed.numel(), dtype=torch.bool, device=missed.device)
        whole[active] = taken
        return whole.view(missed.shape)


def steps_taken(state: dict[str, Any]) -> Any:
    """The number of steps of each matrix before this one, and this one.

    A float if it is one for all and the host may read it, else a tensor (*batch, 1, 1).
    """
    step, missed = state["step"], state["missed"]
    if step.device.type == "cpu" and not on_device(missed):
        if missed.ndim == 0:
            return step.item() - missed.item()
        if not missed.any():
            return step.item()
    if step.device.type == "cpu":
        step = step.item()
    return (step - missed).double().unsqueeze(-1).unsqueeze(-1)


class OptimizerLike(Protocol):
    """What a step asks of its optimizer.

    `projunn.optim.base.UnitaryOptimizer` has it, and imports the modules that ask.
    """

    plain_rule: ClassVar[Any]
    defaults: dict[str, Any]
    param_groups: list[dict[str, Any]]
    state: Any
    _checked: tuple[tuple[Any, ...], ...]
    _fresh: tuple[int, ...]
    _plans: tuple[Any, ...]
    _polishes: bool
    _together: Any

    def check_options(self) -> None: ...

    def _averages(self, group: dict[str, Any]) -> dict[str, bool]: ...

    def _complete_state(self, member: Member, on_device: bool = False) -> None: ...

    def _count_unitary(self) -> bool: ...

    def _direction(
        self, matrices: Any, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor: ...

    def _factored_direction(self, gradient: Any, group: dict[str, Any]) -> tuple[Tensor, Tensor]: ...

    def _init_group(self, group: dict[str, Any], *lists: list[Any], unitary: str = "") -> Any: ...

    def _kernel_rule(self, group: dict[str, Any]) -> Any: ...

    def _start_basis(self, member: Member, factorization: str) -> None: ...

    def _unitary_step(self, members: list[Member]) -> None: ...
