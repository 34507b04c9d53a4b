"""One wrong argument at one of the library's doors: the error names it, and nothing has changed.

Each door is a call with arguments that it takes (which is checked too) and, for some of these, values
that it must refuse, with a ValueError or TypeError in which the name of the argument stands.
"""

import re

import torch

from tests.fuzz.checks import check, same
from tests.fuzz.doors import DOORS

SHARE = 8
# What PyTorch calls its own arguments in the errors that it raises for them.
ALSO = {
    "lr": "learning rate",
    "betas": "beta",
    "eps": "epsilon",
    "params": "parameter",
    "model": "layer",
    "state_dict": "shape|param_groups|parameter group",
}


def case(draw):
    torch.manual_seed(draw.below(2**31))
    door = draw.choice("door", sorted(DOORS))
    call, right, wrong = DOORS[door](draw)
    name = draw.choice("argument", sorted(wrong))
    value = draw.unnamed(wrong[name])
    draw.said["value"] = described(value)
    call(**right())
    arguments = right() | {name: value}
    before = {n: v.detach().clone() for n, v in arguments.items() if is_strided(v)}
    try:
        call(**arguments)
    except (ValueError, TypeError) as error:
        words = "|".join([rf"\b{re.escape(name)}\b", *filter(None, [ALSO.get(name)])])
        first = (str(error).splitlines() or [""])[0]
        check(re.search(words, first), f"the error does not name {name}: {first:.150}")
    except Exception as error:
        check(False, f"a bare {type(error).__name__}: {(str(error).splitlines() or [''])[0]:.150}")
    else:
        check(False, f"{name} was taken")
    for n, old in before.items():
        check(same(old, arguments[n].detach()), f"{n} changed, though the call was refused")


def is_strided(value):
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta


def described(value):
    if isinstance(value, torch.Tensor):
        return f"tensor of {value.dtype} {tuple(value.shape)}"
    return repr(value)[:60]
