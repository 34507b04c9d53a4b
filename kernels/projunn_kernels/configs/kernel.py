"""The declaration of a kernel that is configured: its tiles, its problems, and cases of it.

What walks over kernels (`closed_form`, the tables, the autotuner, ahead-of-time compilation, the checks
of a GPU, a kernel's check of itself) walks over `KERNELS`, where each one enters itself when it is
declared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.problem import Config, Device, Problem

Variant = Mapping[str, Any]


class Inputs:
    """Tensors for a case.

    Args:
        device: where they are made.
        hollow: tensors of the right shape that hold no memory, for launches that are only recorded.
        seed: of their random numbers.
        steps: time steps of a loop over time.
    """

    def __init__(
        self, device: torch.device, *, hollow: bool = False, seed: int = 0, steps: int = 100
    ) -> None:
        self.device, self.hollow, self.steps = device, hollow, steps
        self._source = None if hollow else torch.Generator(device).manual_seed(seed)

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
        """If ``active``, a list of all matrices but the first, backwards, and one entry that is none."""
        if not active:
            return None
        listed = [*range(count - 1, 0, -1), -1] if count > 1 else [0, -1]
        return torch.tensor(listed, dtype=torch.int64, device=self.device)

    def full(self, value: float, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of one value, with memory of its own."""
        return torch.full(shape, value, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class Case:
    """A launch of a kernel on tensors of its own, and the same in PyTorch.

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
        """In PyTorch, on copies on the CPU: in float64 and complex128 if ``precise``."""
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
    """A kernel that is configured, or a few that share a configuration.

    Attributes:
        name: the first part of its buckets in a table.
        functions: the names of the kernels' functions.
        closed_form: the configuration that always works.
        case: a case of a problem; keywords are those of ``variants``.
        small: a small problem that takes the same configuration through every branch and every tail.
        variants: what a launch can be beside its problem: names and values, all combinations of which
            exist.
        allowed: which combinations of a problem and a variant exist.
        candidates: what the autotuner tries; only the closed form if it is not tuned.
        problem: the problem of ``blocks`` matrices m x n of rank k, real or complex (``pairs``), or None
            where the kernel takes no such.
        standard: the problems that are tuned where the user names none, real and complex.
        compiled: problems whose launches stand for all others where kernels are compiled ahead of time;
            those of the first size of each rank with every variant.
        numbers: how many numbers a launch has to move at least.
        passed: the Triton functions that a variant gets as constants.
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
    numbers: Callable[[Problem], int] = lambda problem: problem.blocks * problem.m * problem.n
    passed: Callable[[Problem, Variant], Sequence[Any]] = lambda problem, variant: ()

    def __post_init__(self) -> None:
        if self.name in KERNELS:
            raise ValueError(f"name: there is a kernel {self.name!r} already")
        KERNELS[self.name] = self

    def variants_of(self, problem: Problem) -> Iterator[dict[str, Any]]:
        """Every variant of the launches of a problem."""
        for values in product(*self.variants.values()):
            variant = dict(zip(self.variants, values, strict=True))
            if self.allowed(problem, variant):
                yield variant


KERNELS: dict[str, Kernel] = {}

# Kernels that read gradients take some of their matrices, and real ones in half precision too.
GRADIENTS: Variant = {"active": (False, True), "gradient": (None, torch.bfloat16, torch.float16)}


def no_complex_half(problem: Problem, variant: Variant) -> bool:
    """There are no complex numbers of half precision."""
    return not (problem.pairs and variant["gradient"] is not None)


@contextmanager
def matmul_precision(setting: str) -> Iterator[None]:
    """Inside, ``torch.set_float32_matmul_precision`` is in force."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
