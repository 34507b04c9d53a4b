"""SGD of plain parameters that treats some of them in another way."""

import inspect
from collections.abc import Callable, Iterable
from sys import float_info
from typing import Any

import torch
from torch import Tensor

from projunn.arguments import number
from projunn.manifold import MATRIX_DTYPES, dtype_names
from projunn.optim.options import filled_up, warn_of_misspelt
from projunn.parameter import is_unitary
from projunn.shards import is_sharded
from projunn_kernels.precision import in_full_precision


class PlainSGD(torch.optim.Optimizer):
    """Base of optimizers of plain parameters: a subclass says which are its own, and steps those.

    All others take the step of ``torch.optim.SGD``, which does not keep unitary parameters unitary:
    those are noticed as they are after steps of any other optimizer.

    Args:
        params: parameters or parameter groups.
        rule: the options of ``torch.optim.SGD``.
        more: the options of the subclass.
    """

    def __init__(self, params: Iterable[Any], rule: dict[str, Any], more: dict[str, Any]) -> None:
        self._plain = torch.optim.SGD([torch.zeros(0)], **rule)
        super().__init__(params, {**self._plain.defaults, **more})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._check({**self.defaults, **param_group})
        warn_of_misspelt(param_group, self.defaults)
        super().add_param_group(param_group)

    def _check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if an option of a group is what it cannot be; also those set afterwards."""
        for name in ("lr", "momentum"):
            if not isinstance(group[name], Tensor):
                number(name, group[name], 0.0, float_info.max)

    def _is_ours(self, parameter: Tensor, group: dict[str, Any]) -> bool:
        raise NotImplementedError

    def _own_step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step of every parameter that has a gradient; the same inside of ``torch.autocast``.

        Args:
            closure: as in ``torch.optim``: evaluates the model again and returns the loss.

        Returns:
            What ``closure`` returns, or None.

        Raises:
            ValueError: an option of a group was set to what it cannot be.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._all_steps()
        return loss

    @in_full_precision
    def _all_steps(self) -> None:
        for group in self.param_groups:
            self._check(group)
        others = []
        for group in self.param_groups:
            own = [p for p in group["params"] if self._is_ours(p, group)]
            for p in own:
                if p.grad is not None:
                    check_matrix(p, p.grad)
                    self._own_step(p, -p.grad if group.get("maximize") else p.grad, group)
            known = set(map(id, own))
            others.append({**group, "params": [p for p in group["params"] if id(p) not in known]})
        if any(group["params"] for group in others):
            if not hasattr(self, "_plain"):  # pickling and deepcopy leave it out
                self._plain = torch.optim.SGD([torch.zeros(0)])
            self._plain.param_groups, self._plain.state = others, self.state
            inspect.unwrap(torch.optim.SGD.step)(self._plain)  # below hooks, which run for this one

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` of this rule returned, or of another SGD.

        Options that it lacks keep their values.
        """
        groups = filled_up(state_dict["param_groups"], self.param_groups)
        super().load_state_dict({**state_dict, "param_groups": groups})

    def skipped_steps(self) -> int:
        """The number of steps of matrices that were not taken so far; it waits for their devices."""
        return int(sum(s["skipped"].item() for s in self.state.values() if "skipped" in s))


def check_matrix(parameter: Tensor, grad: Tensor) -> None:
    """Refuses what is not one matrix of numbers with a dense gradient.

    Raises:
        TypeError: in half precision, sharded, a bank or in pairs, or with a gradient of another kind.
    """
    shape = tuple(parameter.shape)
    if parameter.dtype not in MATRIX_DTYPES:
        known = dtype_names()
        raise TypeError(f"params: one of shape {shape} is {parameter.dtype}, wanted one of {known}")
    if is_sharded(parameter):
        raise TypeError(f"params: one of shape {shape} is sharded, wanted one that every process holds")
    if is_unitary(parameter) and (parameter.pairs or parameter.blocks > 1 or parameter.ndim > 2):
        raise TypeError(
            f"params: a unitary parameter of shape {shape} holds more than one real matrix; wanted"
            " projunn.optim.SGD for those"
        )
    if type(grad) not in (Tensor, torch.nn.Parameter) or grad.layout is not torch.strided:
        kind = type(grad).__name__ if type(grad) is not Tensor else grad.layout
        raise TypeError(f"params: one of shape {shape} has a gradient of {kind}, wanted a dense one")
