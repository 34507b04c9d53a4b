"""Kernels that check themselves before they touch a user's numbers.

A compiler can be wrong where Triton's interpreter and our tests are right, and say nothing.  So the
first time that a variant of a kernel is launched on a GPU, the same variant runs on a small problem
first, and its result is compared with the PyTorch path in float64.  A variant is the kernel's source,
its constants and how its sizes are aligned, on one GPU model with one version of Triton.

The verdict is kept in the user's cache and never asked for again; verdicts for GPUs on which ``make
gpu`` has passed are shipped.  A variant that fails is never launched: `Distrusted` sends its operation
to the PyTorch path, with one warning.  So a miscompilation costs speed, and never a wrong number.  A
check that finds no memory says nothing of the kernel: it is made again later, and until then PyTorch
runs.

``PROJUNN_SELFCHECK`` is ``auto`` (on a GPU), ``off``, or ``always`` (in the interpreter too, for tests;
then nothing is kept).
"""

import contextlib
import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources.abc import Traversable
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs import choice, tables
from projunn_kernels.configs.fingerprints import fingerprint, fingerprints
from projunn_kernels.configs.kernel import KERNELS, Inputs, Kernel, Variant
from projunn_kernels.configs.problem import Config, Problem, device_of

MODES = ("auto", "off", "always")
# A kernel may be this much worse than PyTorch in float32, and this far off where PyTorch is lucky.
_FACTOR, _FLOOR = 8.0, 4e-6
_HALF, _TF32 = 2e-2, 5e-3  # floors of products of half-precision numbers, and of TF32 products


class Distrusted(Exception):
    """A variant of a kernel failed its check, and must not run."""


class Unchecked(Distrusted):
    """A variant of a kernel could not be checked yet, because there was no memory for it."""


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        kernel: its name and variant, in words.
        gpu, triton: where it was checked, and with what.
        problem: what was wrong; empty if nothing was.
    """

    kernel: str
    gpu: str
    triton: str
    problem: str

    @property
    def said(self) -> str:
        """In a line."""
        found = self.problem or "right"
        return f"{self.kernel} on {self.gpu} with triton {self.triton}: {found}"


_Question = tuple[Problem, Config, tuple[tuple[str, Any], ...], torch.device]
_answers: dict[_Question, Verdict] = {}
_postponed: dict[str, float] = {}  # when a check that found no memory may be made again, by its key
_AGAIN = 10.0  # seconds; to find out that there is no memory makes PyTorch give back all that it keeps
_one_at_a_time = threading.RLock()  # a check sets PyTorch's default dtype
_generation = 0  # one more each time that verdicts are forgotten
_state = threading.local()


def mode() -> str:
    """The value of ``PROJUNN_SELFCHECK``.

    Raises:
        ValueError: it is none of `MODES`.
    """
    name = os.environ.get("PROJUNN_SELFCHECK", "auto")
    if name not in MODES:
        raise ValueError(f"PROJUNN_SELFCHECK: got {name!r}, wanted one of {', '.join(MODES)}")
    return name


def require(problem: Problem, config: Config, variant: Mapping[str, Any], device: torch.device) -> None:
    """Check the variant that is about to be launched, unless that has been done.

    Raises:
        Distrusted: it failed.
        Unchecked: there is no memory to check it, or was none in the last seconds.
    """
    if is_checking():
        return
    question = (problem, config, tuple(variant.items()), device)
    verdict = _answers.get(question)
    if verdict is None:
        if mode() == "off" or (device.type == "cpu" and mode() != "always"):
            return
        verdict = _answer(problem, config, variant, device)
        if verdict is not None:
            _answers[question] = verdict
    if verdict is not None and verdict.problem:
        raise Distrusted(f"{verdict.kernel}: {verdict.problem}")


def is_settled(
    problem: Problem, config: Config, variant: Mapping[str, Any], device: torch.device
) -> bool:
    """True if the variant has passed its check, so that `require` need not be asked until `forget`."""
    verdict = _answers.get((problem, config, tuple(variant.items()), device))
    return verdict is not None and not verdict.problem


def generation() -> int:
    """A number that changes when verdicts are asked for anew."""
    return _generation


def is_checking() -> bool:
    """True inside of a check, or where checks are suspended."""
    return getattr(_state, "checking", False)


def is_comparing() -> bool:
    """True inside of `comparing`."""
    return getattr(_state, "comparing", False)


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Inside, nothing is checked: for launches that are recorded and not made."""
    before = getattr(_state, "checking", False)
    _state.checking = True
    try:
        yield
    finally:
        _state.checking = before


@contextlib.contextmanager
def comparing() -> Iterator[None]:
    """Inside, kernels run on small problems in the place of large ones, and nothing is checked."""
    _state.comparing = True
    try:
        with suspended():
            yield
    finally:
        _state.comparing = False


def forget() -> None:
    """Ask for every verdict anew: for tests, and after the cache has been changed."""
    global _generation
    _generation += 1
    _answers.clear()
    _postponed.clear()
    _known.cache_clear()


def _answer(
    problem: Problem, config: Config, variant: Mapping[str, Any], device: torch.device
) -> Verdict | None:
    """The verdict, from the cache or from a check; None during the capture of a CUDA graph.

    Raises:
        Unchecked: as `require` does.
    """
    kernel = KERNELS[problem.operation]
    small = smaller(kernel, problem, config)
    key = _key(kernel, small, config, variant, device)
    if device.type == "cuda":
        known = _known().get(key)
        if known is not None:
            if known.problem:
                _warn(known)
            return known
        if torch.cuda.is_current_stream_capturing():
            if key in _postponed:
                raise Unchecked(kernel.name)  # the graph gets what has run before it
            return None  # nothing can be read here; the same launch outside of capture is checked
    if time.monotonic() < _postponed.get(key, 0.0):
        raise Unchecked(kernel.name)
    try:
        with _one_at_a_time:
            verdict, lasts = _check(kernel, small, config, variant, device)
    except Unchecked as error:
        _postponed[key] = time.monotonic() + _AGAIN
        _warn_of_memory(error)
        raise
    _postponed.pop(key, None)
    if device.type == "cuda" and lasts:
        _known()[key] = verdict
        _keep(key, verdict)
    if verdict.problem:
        _warn(verdict)
    return verdict


def smaller(kernel: Kernel, problem: Problem, config: Config) -> Problem:
    """The small problem of a kernel, its sizes multiples of 16, or 1, where those of ``problem`` are.

    Triton compiles sizes that are multiples of 16 to other code than those that are not, and makes a
    constant of a size of 1.
    """
    small = kernel.small(problem, config)

    def like(size: int, given: int) -> int:
        return 1 if given == 1 else size if given % 16 else -(-size // 16) * 16

    m, n = like(small.m, problem.m), like(small.n, problem.n)
    if small.m <= small.n and m > n:  # some kernels take no tall matrices
        m = n if m % 16 or n < 16 else n - n % 16
    return Problem(small.operation, small.pairs, small.k, m, n, small.matrices)


# Of Triton, which says the same at the next try.
_ERRORS_OF_KERNELS = {"CompilationError", "UnsupportedLanguageConstruct", "OutOfResources", "PTXASError"}


def _check(
    kernel: Kernel, small: Problem, config: Config, variant: Mapping[str, Any], device: torch.device
) -> tuple[Verdict, bool]:
    """The verdict, and whether it is one on the kernel: a disk may be full, by chance.

    Raises:
        Unchecked: memory is full.
    """
    gpu, triton = device_of(device).name, tables.triton_version() or ""
    words = [kernel.name, "complex" if small.pairs else "real", f"k={small.k}", f"{small.m}x{small.n}"]
    words += [f"{name}={value}" for name, value in variant.items()]
    lasts, full = True, False
    try:
        with _aside(), choice.using({kernel.name: config}):
            problem = compare(kernel, small, variant, device)
    except Exception as error:  # it does not compile, or cannot be launched: as bad as a wrong number
        problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        lasts, full = type(error).__name__ in _ERRORS_OF_KERNELS, _tells_of_memory(error)
    if full:  # raised here, where nothing holds the tensors of the check any more
        raise Unchecked(f"{' '.join(words)}: {problem}")
    return Verdict(" ".join(words), gpu, triton, problem), lasts


def _tells_of_memory(error: Exception) -> bool:
    """True if there was no memory, which PyTorch, CUDA's libraries and Triton say in their own ways."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))


def compare(kernel: Kernel, problem: Problem, variant: Mapping[str, Any], device: torch.device) -> str:
    """What is wrong with the results of a case, compared with float64; empty if nothing is."""
    case = kernel.case(problem, Inputs(device), **variant)
    ours, plain, exact = case.launched(), case.expected(False), case.expected(True)
    share = max(error_share(*three, floor_of(variant)) for three in zip(ours, plain, exact, strict=True))
    return "" if share <= 1.0 else f"its error is {share:.3g} times what is allowed"


def error_share(ours: Tensor, plain: Tensor, exact: Tensor, floor: float) -> float:
    """The error of ``ours`` over what is allowed: a multiple of PyTorch's in float32, and a floor."""
    size = max(1.0, exact.abs().max().item())
    error = (ours.cpu().to(exact.dtype) - exact).abs().max().item()
    usual = (plain.to(exact.dtype) - exact).abs().max().item()
    share = error / (_FACTOR * usual + floor * size)
    return share if share == share else float("inf")


def floor_of(variant: Variant) -> float:
    """How far off a variant may be where PyTorch in float32 is not."""
    values = set(variant.values())
    if values & {torch.bfloat16, torch.float16}:
        return _HALF
    return _TF32 if values & {"high", "medium"} else _FLOOR


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Inside, nothing of the caller's state is seen or changed."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with comparing(), torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def _warn(verdict: Verdict) -> None:
    warnings.warn(
        "a Triton kernel fails its check on this machine and is replaced by PyTorch operations, which"
        f" are slower: {verdict.said}. Please report this line.",
        RuntimeWarning,
        stacklevel=2,
    )


def _warn_of_memory(error: Unchecked) -> None:
    warnings.warn(
        "memory is too full to check a Triton kernel, and PyTorch operations, which are slower, run in"
        f" its place until it can be checked: {error}",
        RuntimeWarning,
        stacklevel=2,
    )


def _key(
    kernel: Kernel, small: Problem, config: Config, variant: Mapping[str, Any], device: torch.device
) -> str:
    """What a verdict depends on: the sources, the constants, the alignment of sizes, GPU and Triton."""
    sources = [fingerprints()[name] for name in kernel.functions]
    sources += [fingerprint(function) for function in kernel.passed(small, variant)]
    kind = (small.pairs, small.k, small.m, small.n, small.matrices, asdict(config))
    options = sorted((name, str(value)) for name, value in variant.items())
    parts = (sources, kind, options, device_of(device).name, tables.triton_version())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


@cache
def _known() -> dict[str, Verdict]:
    """The verdicts that ship and those in the user's cache, by key: as far as they can be read."""
    found: dict[str, Verdict] = {}
    for folder in (tables.shipped_folder, tables.cache_folder):
        with contextlib.suppress(OSError):  # there is none yet, or it is another user's
            found |= _read(folder() / _FILE)
    return found


_FILE = "verdicts.jsonl"


def _read(file: Traversable) -> dict[str, Verdict]:
    """The verdicts of a file; lines that are none, such as half-written ones, are left out."""
    found = {}
    for line in file.read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            row = {name: str(value) for name, value in json.loads(line).items()}
            key = row.pop("key")
            found[key] = Verdict(**row)
    return found


def _keep(key: str, verdict: Verdict) -> None:
    """Append to the user's file: one write of one line, so that processes do not disturb each other."""
    line = json.dumps({"key": key} | asdict(verdict)) + "\n"
    try:
        folder = tables.cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _FILE).open("a") as file:
            file.write(line)
    except OSError as error:
        warnings.warn(f"the verdict on a kernel cannot be kept: {error}", stacklevel=2)


def verdicts() -> Sequence[Verdict]:
    """All that is known, for ``projunn info``."""
    return list(_known().values())
