"""The launches that ``make aot`` compiles: those of every declared kernel, recorded and not made."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from projunn_kernels import selfcheck
from projunn_kernels.configs import choice
from projunn_kernels.configs.kernel import KERNELS, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Problem
from projunn_kernels.launching import intercepted

Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]
_OPTIONS = {"num_warps", "num_stages", "maxnreg", "launch_pdl"}


def split(kernel: Any, arguments: dict[str, Any]) -> Launch:
    """A launch as the kernel, the values of its arguments in order, and its constants and options."""
    fixed = {n: value for n, value in arguments.items() if n.isupper() or n in _OPTIONS}
    values = tuple(arguments[n] for n in kernel.arg_names if n in arguments and n not in fixed)
    return kernel, values, fixed


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches that happen inside, noted instead of made: kernel, arguments, constants."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self._kernel = kernel

        def __getitem__(self, grid: object) -> Any:
            return lambda **arguments: launches.append(split(self._kernel, arguments))

    with intercepted(Recorder), selfcheck.suspended():
        yield launches


def launches_of(problem: Problem, config: Config, **variant: Any) -> list[Launch]:
    """The launches of the kernels of a problem, on tensors that hold no memory."""
    kernel = KERNELS[problem.operation]
    case = kernel.case(problem, Inputs(torch.device("cpu"), hollow=True), **variant)
    with recorded() as launches, choice.using({problem.operation: config}):
        case.run()
    return [one for one in launches if one[0].__name__ in kernel.functions]


def variants(only: str = "") -> Iterator[tuple[Problem, dict[str, Any]]]:
    """Every variant that the library launches, at sizes that stand for the rest.

    All combinations of a kernel's options at its first size of each rank; at the others, which have
    other tiles, every value of every option once.
    """
    for kernel in KERNELS.values():
        seen: set[tuple[bool, int]] = set()
        for problem in kernel.compiled if only in kernel.name else ():
            kind = problem.pairs, problem.k
            chosen = _one_at_a_time if kind in seen else Kernel.variants_of
            seen.add(kind)
            for variant in chosen(kernel, problem):
                yield problem, variant


def problems(full: bool) -> Iterator[tuple[Problem, dict[str, Any]]]:
    """The problems and variants that stand for all launches; with ``full``, every variant."""
    if full:
        yield from variants()
        return
    for kernel in KERNELS.values():
        for problem in kernel.compiled:
            for variant in _one_at_a_time(kernel, problem):
                yield problem, variant


def tiny_problems() -> Iterator[tuple[Problem, dict[str, Any]]]:
    """Each kernel a few times, small ranks: for the tests."""
    for kernel in KERNELS.values():
        firsts: dict[tuple[bool, int], Problem] = {}
        for problem in kernel.compiled:
            firsts.setdefault((problem.pairs, problem.k), problem)
        chosen = [firsts[kind] for kind in ((False, 2), (True, 1)) if kind in firsts]
        for problem in chosen or list(firsts.values())[:1]:
            every = list(kernel.variants_of(problem))
            for variant in every if len(every) == 2 else every[-1:]:
                yield problem, variant


def _one_at_a_time(kernel: Kernel, problem: Problem) -> Iterator[dict[str, Any]]:
    """The first variant, and those that differ from it in one option."""
    every = list(kernel.variants_of(problem))
    for variant in every:
        if sum(variant[name] != every[0][name] for name in variant) <= 1:
            yield variant
