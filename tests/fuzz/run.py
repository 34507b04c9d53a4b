"""Runs cases: in which surroundings, and what is said of a violation."""

import importlib
import pkgutil
import signal
import traceback
import warnings
from contextlib import contextmanager

import torch

from projunn import OffManifoldWarning
from tests.fuzz import families
from tests.fuzz.checks import Violation
from tests.fuzz.draw import Draw

LONGEST = 60  # seconds; a case takes a tenth of one

FAMILIES = {
    module.name: importlib.import_module(f"{families.__name__}.{module.name}")
    for module in pkgutil.iter_modules(families.__path__)
}


def told(family, seed, *, trace=False):
    """Run a case; the line that tells of its violation, or None."""
    draw = Draw(family, seed)
    try:
        with _surroundings():
            FAMILIES[family].case(draw)
    except Exception as error:
        if trace:
            traceback.print_exc()
        kind = "" if isinstance(error, Violation) else f"{type(error).__name__}: "
        first = (str(error).splitlines() or [""])[0]
        said = ", ".join(f"{name}={value}" for name, value in draw.said.items())
        return f"{family} {seed}: {kind}{first:.300} [{said}]"
    return None


def spread(cases, start=0):
    """So many cases of all families by their shares, as (family, seed)."""
    total = sum(family.SHARE for family in FAMILIES.values())
    for name, family in FAMILIES.items():
        for seed in range(start, start + round(cases * family.SHARE / total)):
            yield name, seed


@contextmanager
def _surroundings():
    """PyTorch's own generator is given back; uninitialised memory reads as NaN; no case hangs.

    What says that a weight is off the manifold is an error: no case puts one there unawares.
    """
    fills = torch.utils.deterministic.fill_uninitialized_memory
    was = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _in_time():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", OffManifoldWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was)
            torch.utils.deterministic.fill_uninitialized_memory = fills


@contextmanager
def _in_time():
    def stop(number, frame):
        raise Violation(f"took more than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
