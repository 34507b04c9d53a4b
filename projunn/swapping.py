"""Conversions of unitary parameters that ``nn.Module`` puts in the place of what it converts."""

from functools import wraps
from typing import Any

import torch
from torch import Tensor


def converter(name: str) -> Any:
    """A conversion such as ``Tensor.to``, whose result ``nn.Parameter`` can wrap.

    Under ``set_swap_module_params_on_conversion`` and ``set_overwrite_module_params_on_conversion`` a
    module wraps what a conversion returns.  Where there is nothing to convert that is the parameter
    itself, and ``nn.Parameter`` takes none of a class that is not its own.
    """
    plain = getattr(Tensor, name)

    @wraps(plain)
    def convert(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        new: Tensor = plain(self, *arguments, **options)
        now = torch.__future__
        wrapped = (
            now.get_swap_module_params_on_conversion() or now.get_overwrite_module_params_on_conversion()
        )
        return new.data if new is self and wrapped and not torch.is_grad_enabled() else new

    return convert
