"""How often the optimizers correct drift.

Rounding moves a weight off the manifold as a random walk.  `projunn_kernels.polish_` brings it back by
one Newton-Schulz step, and the optimizers take one every `polish_period` steps.
"""

from torch import Tensor

from projunn.manifold import nearest, view_like
from projunn.noticing import off_manifold
from projunn.optim.member import Member, capturing
from projunn.parameter import notice
from projunn_kernels import polish_, polish_when_due_

_PERIOD = 192  # steps; a float32 defect grows to about 8e-7 meanwhile (docs/measured.md)


def polish_period(weight: Tensor) -> int:
    """Steps between two polishes, which then cost a few percent of the steps at any size."""
    return max(_PERIOD, 2 * max(weight.shape[-2:]))


def polish(member: Member) -> None:
    """Polish a parameter if its step count says so.

    Raises:
        RuntimeError: a CUDA graph is captured while the count is on the CPU.
    """
    p, count, period = member.parameter, member.state["step"], member.group["polish_every"]
    weight = view_like(p, p.detach())
    if period is None:
        period = polish_period(weight)
    if not period:
        return
    if count.device.type != "cpu":
        polish_when_due_(p.detach() if p.pairs else weight, count, period, p.pairs)
    elif capturing(p):
        raise RuntimeError(
            "capturable: got False, wanted True for the capture of a CUDA graph (or polish_every=0):"
            " with counters on the CPU the graph would polish at every replay, or at none"
        )
    elif count.item() % period == 0:
        if not weight.is_cuda and off_manifold(weight) is not None:
            notice([p], f"After {int(count.item())} steps")
            sound = weight.isfinite().flatten(-2).all(-1)
            weight[sound] = nearest(weight[sound])
        polish_(weight)
