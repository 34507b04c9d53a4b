"""The checks of ``make gpu``: each operation against float64 PyTorch on the CPU.

A case returns its error in units of what is allowed, and passes up to 1.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import projunn
from bench import gpu_conv, gpu_linear, gpu_recurrence
from bench.gpu_machine import Machine

# Error against float64, as a multiple of that of PyTorch in float32, and a floor for lucky zeros.
FACTOR, FLOOR = 8.0, 2e-6

Case = tuple[str, Callable[[], float]]


def run_checks(on: Machine, cases: list[Case], file: Path | None, seconds: float) -> bool:
    """Whether all passed that ``seconds`` were enough for; their rows go to ``file``."""
    begun, bad, done = time.monotonic(), 0, 0
    rows = []
    for name, case in cases:
        if time.monotonic() - begun > seconds:
            break
        torch.manual_seed(done)
        try:
            share = case()
            on.wait()
            problem = "" if share <= 1 else f"error is {share:.3g} times what is allowed"
        except Exception as error:
            share, problem = float("nan"), f"{type(error).__name__}: {error}"
            traceback.print_exc(file=sys.stdout)
        done += 1
        bad += bool(problem)
        if problem:
            print(f"FAILED {name}: {problem}", flush=True)
        rows.append({"check": name, "share": share if share == share else None, "problem": problem})
    print(f"{done} of {len(cases)} checks run, {bad} failed")
    if file is not None:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return bad == 0


def _double(tensor: Tensor) -> Tensor:
    return tensor.cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _share(own: Tensor, plain: Tensor, exact: Tensor) -> float:
    """Error of ours, in units of FACTOR times the error of PyTorch in float32 plus the floor."""

    def error(values: Tensor) -> float:
        return (_double(values) - exact).abs().max().item()

    return error(own) / (FACTOR * error(plain) + FLOOR * max(1.0, exact.abs().max().item()))


def haar(on: Machine, *shape: int, dtype: torch.dtype) -> Tensor:
    return projunn.init.haar_(torch.empty(shape, dtype=dtype)).to(on.device)


def cases(on: Machine, small: bool) -> Iterator[Case]:
    """Names and cases.  ``small``: as many as `compute-sanitizer` gets through."""
    # what is captured and compiled first: the time limit cuts the many combinations after it
    ways = ("plain",) if small else ("plain", "bad", "graph", "compile")
    shapes = [(2, 16, 16)] if small else [(4, 64, 64), (2, 130, 130), (1, 1024, 1024)]
    for rule in ("SGD", "RMSprop", "AdamW"):
        for dtype in (torch.float32, torch.complex64):
            for shape in [(2, 5, 5)] if on.dry else shapes:
                for way in ways:
                    yield f"{way} {rule} {dtype} {shape}", _step_case(on, rule, shape, dtype, way)
    yield from gpu_recurrence.check_cases(on, _share, small)
    yield from gpu_conv.check_cases(on, _share, small)
    yield from gpu_linear.check_cases(on, _share, small)
    shapes = [(2, 16, 16), (2, 33, 20)]
    if on.dry:
        shapes = [(2, 5, 7), (1, 130, 129)]
    elif not small:
        shapes += [(3, 1, 1), (3, 5, 5), (3, 20, 33), (3, 64, 64), (3, 128, 128)]
        shapes += [(3, 130, 130), (1, 544, 544), (1, 1000, 1000), (1, 4096, 4096)]
    for k in (1, 2) if small or on.dry else (1, 2, 3, 8):
        for dtype in (torch.float32, torch.complex64):
            for shape in shapes:
                if k > min(shape[1:]):
                    continue
                listed = (False, True) if shape[0] > 1 and shape[1] <= 130 else (False,)
                for retraction in ("exp",) if on.dry else ("exp", "polar", "cayley"):
                    for active in listed:
                        name = f"retract {retraction} k{k} {dtype} {shape} active={active}"
                        yield name, _retract_case(on, shape, k, dtype, retraction, active)
                yield f"factor k{k} {dtype} {shape}", _factor_case(on, shape, k, dtype)
                yield f"rank_update k{k} {dtype} {shape}", _rank_update_case(on, shape, k, dtype)


def _factors(
    on: Machine, shape: tuple[int, ...], k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    *batch, m, n = shape
    left = torch.randn(*batch, m, k, dtype=dtype, device=on.device) * (0.3 / (m * k) ** 0.5)
    right = torch.randn(*batch, n, k, dtype=dtype, device=on.device) / (n * k) ** 0.5 * 3
    return haar(on, *shape, dtype=dtype), left, right


def _retract_case(
    on: Machine,
    shape: tuple[int, ...],
    k: int,
    dtype: torch.dtype,
    retraction: str,
    listed: bool,
) -> Callable[[], float]:
    def case() -> float:
        from projunn_kernels import retract_

        weight, left, right = _factors(on, shape, k, dtype)
        exact = projunn.retract(_double(weight), _double(left), _double(right), retraction)
        with projunn.backend("torch"):
            plain = projunn.retract(weight, left, right, retraction)
        own, kept = weight.clone(), None
        if listed:
            kept = torch.arange(shape[0] - 1, 0, -1, device=on.device)  # all but the first, backwards
            left, right = left[kept], right[kept]
            exact[0], plain[0] = _double(weight[0]), weight[0]
        taken = retract_(own, left, right, retraction, kept)
        if not bool(taken.all()):
            return float("inf")
        if listed and not torch.equal(own[0], weight[0]):
            return float("inf")
        share = _share(own, plain, exact)
        if shape[-1] > 1024:  # a product in float64 on the CPU would take the time of all the rest
            return share
        return max(share, _share(own @ own.mH, plain @ plain.mH, exact @ exact.mH))

    return case


def _factor_case(on: Machine, shape: tuple[int, ...], k: int, dtype: torch.dtype) -> Callable[[], float]:
    def case() -> float:
        from projunn_kernels import factor

        weight, left, _ = _factors(on, shape, k, dtype)
        x, y = projunn.factorize(_double(weight), k, "subspace", basis=_double(left))
        with projunn.backend("torch"):
            xp, yp = projunn.factorize(weight, k, "subspace", basis=left)
        own = factor(weight, left)
        return _share(own[0] @ own[1].mH, xp @ yp.mH, x @ y.mH)

    return case


def _rank_update_case(
    on: Machine, shape: tuple[int, ...], k: int, dtype: torch.dtype
) -> Callable[[], float]:
    def case() -> float:
        from projunn_kernels import rank_update_

        weight, left, right = _factors(on, shape, k, dtype)
        own = weight.clone()
        rank_update_(own, left, right)
        exact = _double(weight) + _double(left) @ _double(right).mH
        return _share(own, weight + left @ right.mH, exact)

    return case


def _step_case(
    on: Machine, rule: str, shape: tuple[int, ...], dtype: torch.dtype, way: str
) -> Callable[[], float]:
    """A few optimizer steps: unitary afterwards, moved (or, after bad gradients, not at all)."""

    def case() -> float:
        weight = projunn.UnitaryParameter(haar(on, *shape, dtype=dtype))
        before = weight.detach().clone()
        optimizer = getattr(projunn.optim, rule)([weight], lr=0.1)
        weight.grad = torch.randn_like(weight)
        if way == "bad":
            weight.grad.view(-1)[3] = float("nan")
            optimizer.step()
            first = before[0] if before.ndim > 3 or (before.ndim == 3 and len(shape) == 3) else before
            return 0.0 if torch.equal(weight.detach()[0] if len(shape) == 3 else weight, first) else 9.0
        if way == "compile":
            step = torch.compile(lambda: optimizer.step(), backend=on.compiler)
            for _ in range(3):
                step()
        else:
            for _ in range(3):
                optimizer.step()
        if way == "graph":
            replay = on.captured(optimizer.step)
            before = weight.detach().clone()
            for _ in range(3):
                replay()
        if torch.equal(weight.detach(), before):
            return float("inf")
        return float(projunn.unitarity_defect(projunn.matrix_view(weight)).max()) / 5e-6

    return case
