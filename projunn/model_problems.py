"""The launches of a model's training step: the problems that ``projunn autotune --model`` tunes for.

Nothing about the kernels is known here.  Each unitary layer runs forward and backward once, on an input
made up for it, and an optimizer makes a step on made-up gradients.  The kernels record the sizes that
they are called with, and are not launched.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from projunn.manifold import UnitaryParameter, unitary_parameters
from projunn.nn import (
    BlockUnitaryLinear,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
)
from projunn.nn.convolution import UnitaryConvolution
from projunn.optim import SGD
from projunn.optim.base import UnitaryOptimizer
from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs.problem import Problem

_Model = tuple[nn.Module, UnitaryOptimizer | None]
IMAGES, SEQUENCES, LENGTH = 256, 128, 100  # the batch of images, that of anything else, and time steps


def load_model(name: str) -> _Model:
    """The module that the function ``module:function`` returns, and its optimizer or None.

    The current folder is searched for modules, too.

    Raises:
        ValueError: there is no such function, it fails, or its model has no unitary parameters.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path or module_name.endswith(".py"):
        raise ValueError(f"model: got {name!r}, wanted module:function, as in package.module:make_model")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"model: cannot import {module_name!r}: {_said(error)}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ValueError(f"model: module {module_name!r} has no {path!r}") from None
    if not callable(found):
        raise ValueError(f"model: {name!r} is {type(found).__name__}, wanted a function or a module")
    try:
        made = found if isinstance(found, nn.Module) else found()
    except (Exception, SystemExit) as error:
        raise ValueError(f"model: {name!r} cannot be called: {_said(error)}") from error
    return _checked(name, made)


def _said(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _checked(name: str, made: object) -> _Model:
    model, optimizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        wanted = "a torch.nn.Module, or (module, optimizer)"
        raise ValueError(f"model: {name!r} returned {type(made).__name__}, wanted {wanted}")
    if optimizer is not None and not isinstance(optimizer, UnitaryOptimizer):
        kind = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
        raise ValueError(f"model: the optimizer of {name!r} is a {kind}, wanted one of projunn.optim")
    if not unitary_parameters(model):
        raise ValueError(f"model: {type(model).__name__} of {name!r} has no unitary parameters")
    return model, optimizer


def model_problems(
    model: nn.Module,
    optimizer: UnitaryOptimizer | None,
    device: torch.device,
    *,
    ranks: Sequence[int] = (),
    batch: int | None = None,
    length: int = LENGTH,
) -> list[Problem]:
    """The problems of a training step, one for each bucket of sizes: layers first, then the optimizer.

    Args:
        model: the model, which is moved to the device.
        optimizer: its groups say which parameters are stepped, and at which rank; by default all are,
            at rank 1.
        ranks: ranks to make a step at each, in place of the optimizer's.
        batch: sequences, images or rows of a batch; default: 256 images, 128 of anything else.
        length: time steps of a sequence.

    Raises:
        ValueError: no kernel is asked for, or a layer does not run.
    """
    from projunn_kernels.tuning.aot_problems import recorded

    model.to(device)
    stepped = SGD(model.parameters(), lr=1e-3) if optimizer is None else optimizer
    with tuning.asked() as problems, recorded():
        for layer in model.modules():
            example = _example(layer, batch, length, device)
            if example is not None:
                _forward_and_backward(layer, example)
        for rank in ranks or (None,):
            _step(stepped, rank)
    found: dict[str, Problem] = {}
    for problem in problems:
        found.setdefault(problem.bucket, problem)
    if not found:
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in unitary_parameters(model)})
        raise ValueError(f"model: no kernel runs for its unitary parameters ({', '.join(kinds)})")
    return list(found.values())


def _example(layer: nn.Module, batch: int | None, length: int, device: torch.device) -> Tensor | None:
    """An input for a unitary layer; None for any other."""
    rows = SEQUENCES if batch is None else batch
    if isinstance(layer, UnitaryLinear):
        shape: tuple[int, ...] = (rows, layer.in_features)
    elif isinstance(layer, BlockUnitaryLinear):
        shape = (rows, layer.num_blocks * layer.block_size)
    elif isinstance(layer, UnitaryRNN):
        leading = (rows, length) if layer.batch_first else (length, rows)
        shape = (*leading, layer.input_size)
    elif isinstance(layer, UnitaryRNNCell):
        shape = (rows, layer.input_size)
    elif isinstance(layer, UnitaryConvolution):
        images = IMAGES if batch is None else batch
        shape = (images, layer.in_channels, *layer.spatial_size)
    else:
        return None
    dtype = unitary_parameters(layer)[0].dtype.to_real()
    return torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)


def _forward_and_backward(layer: nn.Module, example: Tensor) -> None:
    try:
        output = layer(example)
        first = output[0] if isinstance(output, tuple) else output
        first.backward(torch.zeros_like(first))
    except Exception as error:
        shape = tuple(example.shape)
        raise ValueError(
            f"model: {type(layer).__name__} does not run on an input {shape}: {_said(error)}"
        ) from error


def _step(optimizer: UnitaryOptimizer, rank: int | None) -> None:
    """A step of the unitary parameters; those of other kinds stay as they are."""
    for group in optimizer.param_groups:
        if rank is not None:
            group["rank"] = rank
        for parameter in group["params"]:
            parameter.grad = None
            if isinstance(parameter, UnitaryParameter) and parameter.requires_grad:
                parameter.grad = _gradient(parameter)
    optimizer.step()


def _gradient(parameter: UnitaryParameter) -> Tensor:
    """Random, and in factors where the parameter's gradients are."""
    sketch = parameter.sketch
    if sketch is None:
        return torch.randn_like(parameter)
    left, right = (torch.randn_like(one) for one in (sketch.stored_left, sketch.stored_right))
    return sketch.with_factors(left, right)
