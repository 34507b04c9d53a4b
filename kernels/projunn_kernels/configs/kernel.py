"""The declaration of a kernel: how its tiles are chosen, which problems it has, and cases to run it on.

A kernel enters itself into `KERNELS` when it is declared.  Whatever needs all kernels walks over that:
`closed_form`, the tables, the autotuner, ahead-of-time compilation, the checks on a GPU, and a kernel's
check of itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.problem import Config, Device, Problem

Variant = Mapping[str, Any]
_NEARLY = 3e-4  # of unit rows: two of them span a square of 1e-7, which `language.small.SOUND` is above


class Inputs:
    """Tensors for a case.

    Args:
        device: where the tensors are made.
        hollow: make tensors that have a shape but no memory, for launches that are only recorded.
    """

    steps = 5  # of a time loop

    def __init__(self, device: torch.device, *, hollow: bool = False) -> None:
        self.device, self.hollow = device, hollow
        self._source = None if hollow else torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Standard normal numbers times ``scale``."""
        if self.hollow:
            return torch.empty((1,) * len(shape), dtype=dtype, device=self.device).expand(*shape)
        made = torch.complex64 if dtype.is_complex else torch.float32
        numbers = torch.empty(shape, dtype=made, device=self.device)
        return numbers.normal_(generator=self._source).mul_(scale).to(dtype)

    def unitary(self, count: int, m: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Matrices with orthonormal rows, or columns: (count, m, n)."""
        if self.hollow:
            return self.normal(count, m, n, dtype=dtype)
        wide = m < n
        columns = self.normal(count, max(m, n), min(m, n), dtype=dtype)
        q = torch.linalg.qr(columns.cpu().to(torch.complex128 if dtype.is_complex else torch.float64))[0]
        return (q.mH if wide else q).to(self.device, dtype).contiguous()

    def indices(self, count: int, active: bool) -> Tensor | None:
        """An active list if ``active``: all matrices but the first, backwards, and an entry for none."""
        if not active:
            return None
        listed = [*range(count - 1, 0, -1), -1] if count > 1 else [0, -1]
        return torch.tensor(listed, dtype=torch.int64, device=self.device)

    def apart(self, tensor: Tensor) -> list[Tensor]:
        """The matrices of a tensor (B, m, n) as tensors (1, m, n) of their own."""
        parts = tensor.split(1)
        return list(parts) if self.hollow else [part.clone() for part in parts]

    def last_nearly_dependent(self, rows: Tensor) -> Tensor:
        """Makes the rows of the last of several matrices, (B, .., k, n), nearly alike."""
        if len(rows) > 1 and not self.hollow:
            rows[-1, ..., 1:, :] = rows[-1, ..., :1, :] + _NEARLY * rows[-1, ..., 1:, :]
        return rows

    def full(self, value: float, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of one value, with memory of its own."""
        return torch.full(shape, value, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class Case:
    """A launch of a kernel on tensors made for it, and the same computation in PyTorch.

    Attributes:
        tensors: the arguments, by name.
        launch: launches the kernels on them and returns what they computed.
        eager: computes the same in PyTorch; works in float32 and float64.
        changed: names of the tensors that the launch changes in place.
    """

    tensors: Mapping[str, Tensor | None]
    launch: Callable[..., Sequence[Tensor]]
    eager: Callable[..., Sequence[Tensor]]
    changed: tuple[str, ...] = ()

    def run(self) -> Sequence[Tensor]:
        """Launch on the tensors as they are."""
        return self.launch(**self.tensors)

    def launched(self) -> Sequence[Tensor]:
        """Launch on copies."""
        return self.launch(**self._copies(None))

    def expected(self, precise: bool) -> Sequence[Tensor]:
        """Compute the same in PyTorch, on copies on the CPU; in float64 or complex128 if ``precise``."""
        return self.eager(**self._copies(precise))

    def _copies(self, precise: bool | None) -> dict[str, Tensor | None]:
        return {
            name: None if tensor is None else _copy(tensor, precise)
            for name, tensor in self.tensors.items()
        }


def _copy(tensor: Tensor, precise: bool | None) -> Tensor:
    if precise is None:
        return tensor.clone()
    if not tensor.is_floating_point() and not tensor.is_complex():
        return tensor.cpu().clone()
    if precise:
        return tensor.cpu().to(torch.complex128 if tensor.is_complex() else torch.float64, copy=True)
    return tensor.cpu().to(torch.complex64 if tensor.is_complex() else torch.float32, copy=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Kernel:
    """A kernel with a configuration, or a few kernels that share one.

    Attributes:
        name: the first part of the keys (buckets) that its problems have in a table.
        functions: the names of the Triton functions.
        closed_form: gives the configuration of a problem that always works.
        case: makes a case of a problem; its keywords are those of ``variants``.
        small: gives a small problem that takes a configuration through every branch and every tail.
        variants: the options of a launch beside its problem, each with all of its values.
        allowed: tells which combinations of a problem and a variant exist.
        candidates: gives the configurations that the autotuner tries; None if the kernel is not tuned.
        problem: makes the problem of ``matrices`` matrices m x n, rank k, real or complex (``pairs``);
            None if the kernel takes no such matrices.
        standard: the problems that are tuned if the user names none, real and complex.
        compiled: the problems that stand for all others where kernels are compiled ahead of time.  The
            first size of each rank is compiled in every variant.
        numbers: how many numbers a launch has to move at least.
        passed: the Triton functions that a variant gets as constants.
        exists: tells whether problems of a size are launched on a device; elsewhere PyTorch takes them.
    """

    name: str
    functions: tuple[str, ...]
    closed_form: Callable[[Problem, Device], Config]
    case: Callable[..., Case]
    small: Callable[[Problem, Config], Problem]
    variants: Mapping[str, Sequence[Any]]
    allowed: Callable[[Problem, Variant], bool] = lambda problem, variant: True
    candidates: Callable[[Problem, Device], list[Config]] | None = None
    problem: Callable[[int, int, int, int, bool], Problem | None] | None = None
    standard: Sequence[Problem] = ()
    compiled: Sequence[Problem] = ()
    numbers: Callable[[Problem], int] = lambda problem: problem.matrices * problem.m * problem.n
    passed: Callable[[Problem, Variant], Sequence[Any]] = lambda problem, variant: ()
    exists: Callable[[Problem, Device], bool] = lambda problem, device: True

    def __post_init__(self) -> None:
        if self.name in KERNELS:
            raise ValueError(f"name: there is a kernel {self.name!r} already")
        KERNELS[self.name] = self

    def variants_of(self, problem: Problem) -> Iterator[dict[str, Any]]:
        """Every variant that a launch of the problem can have."""
        for values in product(*self.variants.values()):
            variant = dict(zip(self.variants, values, strict=True))
            if self.allowed(problem, variant):
                yield variant


KERNELS: dict[str, Kernel] = {}

# Kernels that read gradients take some of their matrices, and real ones in half precision too.
_HALVES = (None, torch.bfloat16, torch.float16)
GRADIENTS: Variant = {"active": (False, True), "gradient": _HALVES}
# Those of large matrices also take the matrices of several tensors.
LISTED = ("all", "active", "table")
LISTED_GRADIENTS: Variant = {"listed": LISTED, "gradient": _HALVES}


def no_complex_half(problem: Problem, variant: Variant) -> bool:
    """There are no complex numbers of half precision."""
    return not (problem.pairs and variant["gradient"] is not None)
