"""What the interpreter cannot show, since it runs one program after the other, each by one thread.

On a GPU the programs of a launch run at once and in any order, and so do the threads of a program from
one barrier to the next.  So it is watched who loads and who stores what, and programs run backwards.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import projunn  # noqa: F401 (declares all kernels)
from projunn_kernels import selfcheck
from projunn_kernels.configs import choice
from projunn_kernels.configs.kernel import KERNELS
from projunn_kernels.configs.problem import Device

LOAD, STORE, ADD = range(3)
LARGE = 80  # rows and columns of a case; a matrix of the larger ones takes the interpreter a minute


class Programs:
    """The addresses that each program of a launch touches, and what goes wrong there."""

    def __init__(self):
        self.wrong = set()
        self.begin()

    def begin(self):
        """A launch: its programs have touched nothing yet."""
        self.program, self.touched, self.unseen = -1, [], []

    def next_program(self):
        self.program += 1
        self.unseen = []

    def barrier(self):
        """What was stored before is there for all threads of the program."""
        self.unseen = []

    def touch(self, kind, addresses, values):
        """A load, a store or an atomic sum of the program that runs."""
        if kind == LOAD and self.unseen and np.isin(addresses, np.concatenate(self.unseen)).any():
            self.wrong.add("a program loads what its threads have stored since the last barrier")
        if kind == STORE:
            self.unseen.append(addresses)
        of_all = (np.full(addresses.shape, number) for number in (kind, self.program))
        self.touched.append((addresses, values, *of_all))

    def end(self):
        """Look at what the programs had in common."""
        if self.program > 0 and self.touched:
            columns = [*map(np.concatenate, zip(*self.touched, strict=True))]
            order = np.argsort(columns[0], kind="stable")
            addresses, values, kinds, programs = (column[order] for column in columns)
            firsts = np.flatnonzero(np.diff(addresses, prepend=-1))

            def differ(numbers):
                least, most = (f.reduceat(numbers, firsts) for f in (np.fmin, np.fmax))
                return least < most

            load, store, add = (
                np.logical_or.reduceat(kinds == kind, firsts) for kind in (LOAD, STORE, ADD)
            )
            stored = differ(np.where(kinds == STORE, values, np.nan))
            if (differ(programs) & ((store & (load | add | stored)) | (load & add))).any():
                self.wrong.add("programs load, or store otherwise, what another one stores")
        self.begin()


@pytest.fixture
def programs(monkeypatch):
    """The `Programs` of the launches in the interpreter, the last of which runs first."""
    from triton.runtime.interpreter import InterpreterBuilder

    watch = Programs()

    def instead(name, before):
        inner = getattr(InterpreterBuilder, name)
        monkeypatch.setattr(InterpreterBuilder, name, lambda self, *given: before(inner, self, *given))

    def touched(kind, pointers, mask, value):
        inside = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        values = np.zeros(pointers.data.shape) if value is None else value.data
        values = np.broadcast_to(values, inside.shape)[inside].astype(float)
        watch.touch(kind, pointers.data[inside].astype(np.int64).ravel(), values.ravel())

    def load(inner, builder, pointers, mask, *given):
        touched(LOAD, pointers, mask, None)
        return inner(builder, pointers, mask, *given)

    def store(inner, builder, pointers, value, mask, *given):
        touched(STORE, pointers, mask, value)
        return inner(builder, pointers, value, mask, *given)

    def add(inner, builder, operation, pointers, value, mask, *given):
        touched(ADD, pointers, mask, value)
        return inner(builder, operation, pointers, value, mask, *given)

    def grid(inner, builder, *sizes):
        watch.end()
        return inner(builder, *sizes)

    def place(inner, builder, *place):
        watch.next_program()
        sizes = builder.grid_dim
        return inner(builder, *(size - 1 - at for size, at in zip(sizes, place, strict=True)))

    instead("create_masked_load", load)
    instead("create_masked_store", store)
    instead("create_atomic_rmw", add)
    instead("set_grid_dim", grid)
    instead("set_grid_idx", place)
    instead("create_barrier", lambda inner, builder: watch.barrier())
    return watch


def small(kernel):
    """The smallest of the problems that the self-checks of a kernel have, with tails.

    Real, but where complex matrices have more than one block.
    """
    pairs = kernel.name in ("triangle", "turn")
    problems = [p for p in kernel.compiled or kernel.standard if p.pairs == pairs]
    configs = [kernel.closed_form(problem, Device()) for problem in problems]
    found = [selfcheck.smaller(kernel, *both) for both in zip(problems, configs, strict=True)]
    problem, config = min(
        zip(found, configs, strict=True), key=lambda one: one[0].m * one[0].n * one[0].k
    )
    if not kernel.name.startswith(("fourier", "recurrence")):
        problem = replace(problem, m=min(problem.m, LARGE), n=min(problem.n, LARGE))
    return problem, config


@pytest.mark.interpreter_only
@pytest.mark.parametrize("name", KERNELS)
def test_programs_and_threads_may_run_in_any_order(kernels, programs, name):
    kernel = KERNELS[name]
    problem, config = small(kernel)
    variant = next(kernel.variants_of(problem))
    with choice.using({name: config}), selfcheck.comparing(), kernels.backend():
        wrong = selfcheck.compare(kernel, problem, variant, kernels.device)
    programs.end()
    assert not wrong
    assert not programs.wrong


@pytest.mark.interpreter_only
def test_a_race_is_found(programs):
    """Of programs that read what their neighbour writes, and of threads without a barrier."""
    from tests.kernels.racing import neighbours_kernel

    numbers = torch.zeros(64)
    for barrier in (True, False):
        programs.wrong.clear()
        neighbours_kernel[(2,)](numbers, BARRIER=barrier, B=16)
        programs.end()
        assert len(programs.wrong) == 2 - barrier
