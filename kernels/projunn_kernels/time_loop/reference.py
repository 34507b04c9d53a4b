"""The time loop as its formula says, with autograd's own gradient."""

import torch
from torch import Tensor

NONLINEARITIES = ("modrelu", "relu", "tanh", "identity")


def recurrence(
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    resets: Tensor | None = None,
) -> Tensor:
    """All states of the loop without U, real or complex: (T, batch, n).

    Where ``resets`` (T, batch) is True, the state before that time step is replaced by zero.
    """
    states, h = [], initial
    for t, x in enumerate(inputs):
        if resets is not None:
            h = torch.where(resets[t].unsqueeze(-1), 0.0, h)
        h = apply_nonlinearity(x + h @ weight.mT, bias, nonlinearity)
        states.append(h)
    return torch.stack(states)


def apply_nonlinearity(z: Tensor, bias: Tensor | None, nonlinearity: str) -> Tensor:
    """f(z), elementwise, of real or complex z.

        identity   z                            relu   max(z, 0), real only
        tanh       tanh z                       modrelu   z / |z| max(|z| + b, 0)   (0 at z = 0)

    ``bias`` is b of modReLU, real, and broadcast against z; None for any other f.

    Raises:
        ValueError: another ``nonlinearity``.
    """
    if nonlinearity == "modrelu":
        assert bias is not None
        if not z.is_complex():
            return z.sgn() * (z.abs() + bias).relu()
        some = z != 0  # zeros are kept out of abs, whose second derivative is NaN there
        size = torch.where(some, z, 1.0).abs()
        grown = (size + bias).relu() / size.clamp_min(torch.finfo(size.dtype).tiny)
        return z * torch.where(some, grown, 0.0)
    if nonlinearity == "relu":
        return z.relu()
    if nonlinearity == "tanh":
        return z.tanh()
    if nonlinearity == "identity":
        return z
    raise ValueError(f"nonlinearity: got {nonlinearity!r}, wanted one of {', '.join(NONLINEARITIES)}")
