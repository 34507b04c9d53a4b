"""The published projUNN code (``facebookresearch/projUNN``), from the folder that ``PUBLISHED`` names.

Nothing of it is part of this repository.  It is a package that is named ``projunn`` like ours, so it is
loaded under another name, and module by module: the projections from ``utils``, the convolution from
``layers``, or from ``models`` in a commit that has it there.  (The newest commit's ``layers.py`` is an
unresolved merge and does not load; commit 5285b00 does.)
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from bench.gpu.case import Absent, Step

VARIABLE = "PUBLISHED"
LR, LR_DIVIDER = 1e-2, 32.0
_PACKAGE = "published_projunn"


def module(name: str) -> ModuleType:
    """One module of the published package.

    Raises:
        Absent: ``PUBLISHED`` names no such code, or the module does not load.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise Absent(f"the published code: {VARIABLE} is not set")
    package = Path(folder) / "projunn"
    if not (package / f"{name}.py").is_file():
        raise Absent(f"the published code: there is no {package / name}.py")
    if _PACKAGE not in sys.modules:
        shell = ModuleType(_PACKAGE)
        shell.__path__ = [str(package)]
        sys.modules[_PACKAGE] = shell
    try:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    except (ImportError, SyntaxError) as error:
        raise Absent(f"the published code: {name}.py does not load: {error}") from error


def step(weight: Tensor, gradient: Tensor, kind: str) -> Step:
    """Its whole step of SGD at rank 1, as its scripts write it: projUNN-T or projUNN-D."""
    functions = module("utils")
    project = {"T": functions.projUNN_T, "D": functions.projUNN_D}[kind]

    @torch.no_grad()
    def step() -> None:
        a, b = functions.LSI_approximation(-LR * gradient / LR_DIVIDER, k=1)
        weight.add_(project(weight, a, b, project_on=False))

    return step


def convolution(channels: int, side: int, device: torch.device) -> nn.Module:
    """Its full-width convolution of images with as many channels in as out."""
    try:
        make: Callable[..., nn.Module] = module("layers").FullWidthConv2d
    except Absent:
        make = module("models").FullWidthConv2d
    return make(channels, channels, side).to(device)
