"""How often the optimizers correct drift.

Rounding moves a weight off the manifold: as a random walk while it turns, and the same way step after
step while it hardly moves.  `projunn_kernels.polish_` brings it back by one Newton-Schulz step, and the
optimizers take one every `polish_period` steps of a matrix.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from projunn.manifold import nearest, view_like
from projunn.noticing import TOLERANCE
from projunn.optim.member import Member, capturing, steps_taken
from projunn.parameter import notice
from projunn_kernels import polish_, polish_near_, polish_when_due_

# A float32 defect grows by up to 1.2e-7 a step at n = 2, by 3.5e-8 at n = 16 (docs/measured.md).
_LEAST, _MOST = 4, 16


def polish_period(weight: Tensor) -> int:
    """Steps between two polishes.

    Up to n = 64 a float32 defect stays below 1e-6; larger matrices are polished as often as is cheap.
    """
    n = max(weight.shape[-2:])
    return max(min(max(_LEAST, 2 * n), _MOST), min(n * n // 256, 2 * n))


def period_of(member: Member) -> int:
    """Steps between two polishes of a parameter; 0 for none."""
    period: int | None = member.group["polish_every"]
    if period is None:
        if not member.period:
            p = member.parameter
            member.period = polish_period(view_like(p, p.detach()))
        period = member.period
    return period


def steps_to_polish(member: Member) -> int:
    """A number of steps before which no polish can be due."""
    period, count, missed = period_of(member), member.state["step"], member.state["missed"]
    if not period:
        return sys.maxsize
    if count.device.type != "cpu":
        return 1  # the device decides
    if missed.device.type != "cpu" or missed.numel() == 0:
        return period - int(count.item()) % period
    return int((period - (count - missed) % period).min().item())


def steps_left(members: Sequence[Member]) -> Tensor | None:
    """The number of the next step, counted from now, that may be followed by a polish, on the device.

    No earlier one is: a step that a matrix misses delays its polish.  None if there is no drift control.
    """
    by_period: dict[int, list[Member]] = {}
    for member in members:
        if period_of(member) and member.state["missed"].numel():
            by_period.setdefault(period_of(member), []).append(member)
    left = []
    for period, alike in by_period.items():
        missed = [member.state["missed"].flatten() for member in alike]
        steps = [member.state["step"].expand(len(t)) for member, t in zip(alike, missed, strict=True)]
        left.append((period - (torch.cat(steps) - torch.cat(missed)) % period).min())
    return torch.stack(left).min() if left else None


def polish(member: Member, taken: Tensor | None) -> None:
    """Polish those matrices of a parameter that took a step, if the number of their steps says so.

    Args:
        taken: the mask of the steps taken, (*batch); None for all.

    Raises:
        RuntimeError: a CUDA graph is captured while the count is on the CPU.
    """
    p, state, period = member.parameter, member.state, period_of(member)
    if not period:
        return
    count = state["step"]
    on_host = count.device.type == "cpu"
    one_on_the_host = on_host and state["missed"].ndim == 0 and not p.is_cuda
    if one_on_the_host and (count.item() - state["missed"].item()) % period:
        return  # the usual case, before anything is looked at
    weight = view_like(p, p.detach())
    if not on_host:
        stored = p.detach() if p.pairs else weight
        polish_when_due_([stored], [count], period, p.pairs, [state["missed"]], taken)
    elif capturing(p):
        raise RuntimeError(
            "capturable: got False, wanted True for the capture of a CUDA graph (or polish_every=0):"
            " with counters on the CPU the graph would polish at every replay, or at none"
        )
    elif weight.device.type != "cpu" and member.grad.layout == torch.strided:
        if count.item() % period == 0:  # what was missed is known to the device alone
            polish_(weight, taken)
    elif isinstance(steps := steps_taken(state), Tensor):
        due = steps[..., 0, 0] % period == 0
        due = due if taken is None else due & taken
        if due.any():
            matrices = weight[due]
            _polish(member, matrices, count)
            weight[due] = matrices
    elif steps % period == 0 and (taken is None or taken.all()):
        _polish(member, weight, count)


def polish_alike(members: list[Member], taken: Tensor) -> bool:
    """`polish` of parameters of one shape on a GPU, in one call.

    Args:
        taken: the mask of the steps taken, (*batch), or of several parameters (parameters, *batch).

    Returns:
        Whether it was done: not if they have different periods or, where the host counts their steps,
        different counts.
    """
    first, steps = members[0].parameter, [member.state["step"] for member in members]
    on_host = steps[0].device.type == "cpu"
    known = {
        (period_of(member), int(step.item()) if on_host else 0)
        for member, step in zip(members, steps, strict=True)
    }
    if len(known) > 1 or (on_host and capturing(first)):
        return False
    ((period, count),) = known
    if period and count % period == 0:
        weights = [member.parameter.detach() for member in members]
        stored = weights if first.pairs else [view_like(first, weight) for weight in weights]
        if on_host:  # what was missed is known to the device alone
            polish_when_due_(stored, [_zero(first.device)] * len(stored), 1, first.pairs, taken=taken)
        else:
            missed = [member.state["missed"] for member in members]
            polish_when_due_(stored, steps, period, first.pairs, missed, taken)
    return True


@cache
def _zero(device: torch.device) -> Tensor:
    """A count of which every period is a divisor."""
    return torch.zeros((), dtype=torch.int64, device=device)


def _polish(member: Member, matrices: Tensor, count: Tensor) -> None:
    """Polish matrices of a parameter, and pull those back that are far away."""
    if matrices.device.type == "cpu":
        shown = list(member.shown) or [member.parameter]
        pull_back(matrices, lambda: notice(shown, f"After {int(count.item())} steps", mended=True))
    else:
        polish_(matrices)


def pull_back(matrices: Tensor, noticed: Callable[[], None]) -> None:
    """Polish matrices on a CPU; if one is far away, call ``noticed`` and take the nearest of all."""
    if polish_near_(matrices, TOLERANCE):
        return
    noticed()
    sound = matrices.isfinite().flatten(-2).all(-1)
    matrices[sound] = nearest(matrices[sound])
    polish_(matrices)
