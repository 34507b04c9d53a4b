"""The checks of ``make gpu``: each operation against float64 PyTorch on the CPU.

`cases` is the one source of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import projunn
from bench.gpu import convolution, linear, recurrence, steps
from bench.gpu.accuracy import double, share
from bench.gpu.case import Case
from bench.gpu.machine import Machine
from bench.gpu.weights import haar
from projunn_kernels import factor, rank_update_, retract_, selfcheck
from projunn_kernels.configs import choice
from projunn_kernels.configs.kernel import KERNELS, Inputs, Kernel, Variant
from projunn_kernels.configs.problem import Problem, device_of
from projunn_kernels.constants import MAX_RANK

Check = Callable[[], float]  # the error as a multiple of what is allowed

DEFECT = 5e-6  # allowed after a few optimizer steps
RULES = ("SGD", "RMSprop", "AdamW")
DTYPES = (torch.float32, torch.complex64)
MANY = ((2, 33, 20), (3, 20, 33), (3, 64, 64), (1, 1000, 1000))  # of ranks above MAX_RANK


def cases(on: Machine, small: bool = False) -> list[Case]:
    """All checks; with ``small``, as many as compute-sanitizer gets through."""
    return [
        *_steps(on, small),
        *steps.checks(on, small),
        *recurrence.checks(on, small),
        *convolution.checks(on, small),
        *linear.checks(on, small),
        *_operations(on, small),
        *_declared(on, small),
    ]


def small_cases(on: Machine) -> list[Case]:
    return cases(on, small=True)


def _steps(on: Machine, small: bool) -> list[Case]:
    shapes = [(4, 64, 64), (2, 130, 130), (1, 1024, 1024)]
    if small or on.dry:
        shapes = [(2, 16, 16)] if small else [(2, 5, 5)]
    ways: tuple[str, ...] = ("plain", "single pass")
    if not small:
        ways += ("bad", "graph", "single pass, graph", "compile", "rank 4", "rank 16, graph")
    return [
        Case(f"{way} {rule} {dtype} {shape}", f"step, {way}", _step(on, rule, shape, dtype, way))
        for shape in shapes
        for dtype in DTYPES
        for rule in RULES
        for way in ways
    ]


def _operations(on: Machine, small: bool) -> list[Case]:
    shapes = [(2, 16, 16), (2, 33, 20)]
    if on.dry:
        shapes = [(2, 5, 7), (1, 130, 129)]
    elif not small:
        shapes += [(3, 1, 1), (3, 5, 5), (3, 20, 33), (3, 64, 64), (3, 128, 128)]
        shapes += [(3, 130, 130), (1, 544, 544), (1, 1000, 1000), (1, 4096, 4096)]
    found = []
    for k in (1,) if on.dry else (1, 2) if small else (1, 2, 3, 8, 16):
        for dtype in DTYPES:
            for shape in shapes:
                if k > min(shape[1:]) or (k > MAX_RANK and shape not in MANY):
                    continue
                listed = (False, True) if shape[0] > 1 and shape[1] <= 130 else (False,)
                for retraction in ("exp",) if on.dry else ("exp", "polar", "cayley"):
                    for active in listed:
                        name = f"retract {retraction} k{k} {dtype} {shape} active={active}"
                        case = _retract(on, shape, k, dtype, retraction, active)
                        found.append(Case(name, f"retract {retraction} k{k} {dtype}", case))
                name = f"k{k} {dtype} {shape}"
                kind = f"k{k} {dtype}"
                case = _factor(on, shape, k, dtype)
                found.append(Case(f"factor {name}", f"factor {kind}", case))
                case = _rank_update(on, shape, k, dtype)
                found.append(Case(f"rank_update {name}", f"rank_update {kind}", case))
    return found


def _declared(on: Machine, small: bool) -> list[Case]:
    """Every variant of every kernel, as the kernels' own declarations have it, on small problems.

    They launch what the problems of real networks launch: the same constants, the same alignment.
    """
    found = {}
    for kernel in list(KERNELS.values())[:: 4 if on.dry else 1]:
        problems = list(kernel.compiled)
        if on.dry or small:
            problems = [min(problems, key=lambda p: p.matrices * p.k * p.m * p.n)]
        for problem in problems:
            numbers = "complex" if problem.pairs else "real"
            for variant in kernel.variants_of(problem):
                words = [f"{name}={value}" for name, value in variant.items()]
                words = ["kernel", problem.bucket, f"{problem.m}x{problem.n}", *words]
                kind = f"kernel {kernel.name}" + ("" if on.dry else f" {numbers} k{problem.k}")
                case = Case(" ".join(words), kind, _variant(on, kernel, problem, variant))
                found[case.name] = case
                if small:
                    break
    return list(found.values())


def _variant(on: Machine, kernel: Kernel, problem: Problem, variant: Variant) -> Check:
    def call() -> float:
        device = device_of(on.device)
        if not kernel.exists(problem, device):
            return 0.0  # it is never launched there
        config = kernel.closed_form(problem, device)
        small = selfcheck.smaller(kernel, problem, config)
        case = kernel.case(small, Inputs(on.device), **variant)
        with choice.using({kernel.name: config}), selfcheck.comparing():
            ours = case.launched()
        three = zip(ours, case.expected(False), case.expected(True), strict=True)
        return max(selfcheck.error_share(*tensors, selfcheck.floor_of(variant)) for tensors in three)

    return call


def _factors(
    on: Machine, shape: tuple[int, ...], k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    *batch, m, n = shape
    left = torch.randn(*batch, m, k, dtype=dtype, device=on.device) * (0.3 / (m * k) ** 0.5)
    right = torch.randn(*batch, n, k, dtype=dtype, device=on.device) / (n * k) ** 0.5 * 3
    return haar(on, *shape, dtype=dtype), left, right


def _retract(
    on: Machine,
    shape: tuple[int, ...],
    k: int,
    dtype: torch.dtype,
    retraction: str,
    listed: bool,
) -> Check:
    def call() -> float:
        weight, left, right = _factors(on, shape, k, dtype)
        exact = projunn.retract(double(weight), double(left), double(right), retraction)
        with projunn.backend("torch"):
            plain = projunn.retract(weight, left, right, retraction)
        own, kept = weight.clone(), None
        if listed:
            kept = torch.arange(shape[0] - 1, 0, -1, device=on.device)  # all but the first, backwards
            left, right = left[kept], right[kept]
            exact[0], plain[0] = double(weight[0]), weight[0]
        taken = retract_(own, left, right, retraction, kept)
        if not bool(taken.all()):
            return float("inf")
        if listed and not torch.equal(own[0], weight[0]):
            return float("inf")
        error = share(own, plain, exact)
        if shape[-1] > 1024:  # a product in float64 on the CPU would take the time of all the rest
            return error
        return max(error, share(own @ own.mH, plain @ plain.mH, exact @ exact.mH))

    return call


def _factor(on: Machine, shape: tuple[int, ...], k: int, dtype: torch.dtype) -> Check:
    def call() -> float:
        weight, left, _ = _factors(on, shape, k, dtype)
        x, y = projunn.factorize(double(weight), k, "subspace", basis=double(left))
        with projunn.backend("torch"):
            xp, yp = projunn.factorize(weight, k, "subspace", basis=left)
        own = factor(weight, left)
        return share(own[0] @ own[1].mH, xp @ yp.mH, x @ y.mH)

    return call


def _rank_update(on: Machine, shape: tuple[int, ...], k: int, dtype: torch.dtype) -> Check:
    def call() -> float:
        weight, left, right = _factors(on, shape, k, dtype)
        own = weight.clone()
        rank_update_(own, left, right)
        exact = double(weight) + double(left) @ double(right).mH
        return share(own, weight + left @ right.mH, exact)

    return call


def _step(on: Machine, rule: str, shape: tuple[int, ...], dtype: torch.dtype, way: str) -> Check:
    """Three optimizer steps (one on a dry run): unitary afterwards, and moved.

    ``graph``: as many again, replayed.  ``bad``: after gradients of which the first is not finite, the
    first matrix is as it was, and the others moved.
    """

    def call() -> float:
        weight = projunn.UnitaryParameter(haar(on, *shape, dtype=dtype))
        before = weight.detach().clone()
        options: dict[str, object] = {}
        if way.startswith("rank"):
            options["rank"] = on.size(16 if "16" in way else 4, 2)
        if way.startswith("single pass"):
            options["factorization"] = "single_pass"
        if way.endswith("graph"):  # the library refuses to have other optimizers captured
            options["capturable"] = on.capturable
        optimizer = getattr(projunn.optim, rule)([weight], lr=0.1, **options)
        weight.grad = torch.randn_like(weight)
        if way == "bad":
            weight.grad[0, 0, 3] = float("nan")
        step = optimizer.step
        if way == "compile":
            torch._dynamo.reset()  # else the ninth such check of a process would run uncompiled
            step = torch.compile(lambda: optimizer.step(), backend=on.compiler)
        for _ in range(on.size(3, 1)):
            step()
        if way.endswith("graph"):
            replay = on.captured(step)
            before = weight.detach().clone()
            for _ in range(on.size(3, 1)):
                replay()
        moved = [not torch.equal(a, b) for a, b in zip(weight.detach(), before, strict=True)]
        if moved != [way != "bad", *[True] * (len(moved) - 1)]:
            return float("inf")
        return float(projunn.unitarity_defect(projunn.matrix_view(weight)).max()) / DEFECT

    return call
