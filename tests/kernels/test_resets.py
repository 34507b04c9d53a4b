"""Resets in the middle of a sequence, in every form of the time loop's kernels."""

from itertools import product

import pytest
import torch

from projunn_kernels import recurrence
from projunn_kernels.configs import choice
from projunn_kernels.configs.closed_form import closed_form
from projunn_kernels.configs.kernel import KERNELS
from projunn_kernels.configs.problem import Config, Problem
from projunn_kernels.tuning.aot_problems import launches_of, problems, tiny_problems
from projunn_kernels.tuning.binaries import ARCHITECTURES, binary
from tests.time_loops import CASES, check, draw, moved, small_weight

NAMES = ("recurrence", "recurrence_backward")
H100 = ARCHITECTURES["sm_90"]
# W in one piece and, where the units do not fit a tile, in four; panels of less than all units.
FORMS = [
    Config(1, 16, 4, hold=True),
    Config(1, 64, 4, hold=True),
    Config(1, 128, 8, hold=True),
    Config(8, 16, 4, hold=True),
    Config(16, 64, 4, hold=True),
    Config(8, 16, 4, depth=16),
    Config(16, 64, 4, depth=32, stages=3),
]
PASSING = Config(1, 16, 4)


def compare(kernels, config, complex_, nonlinearity, resets, n=37):
    tensors = small_weight(draw(complex_, nonlinearity, *resets.shape, n, torch.float32))
    with choice.using(dict.fromkeys(NAMES, config)):
        check(kernels, tensors, complex_, nonlinearity, resets=resets)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("config", FORMS, ids=str)
def test_every_tiling_cuts_states_and_gradients(kernels, complex_, config):
    """Of 19 rows, which no number of rows a program divides, and of one."""
    for steps, batch in ((5, 19), (3, 1), (1, 3)):
        compare(kernels, config, complex_, "modrelu", torch.rand(steps, batch) < 0.4)


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
def test_every_nonlinearity_where_a_part_of_the_weight_passes(kernels, nonlinearity, complex_):
    compare(kernels, PASSING, complex_, nonlinearity, torch.rand(4, 9) < 0.4, n=23)


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize("config", [FORMS[1], FORMS[3], FORMS[5]], ids=str)
def test_every_nonlinearity_in_every_form(kernels, nonlinearity, complex_, config):
    compare(kernels, config, complex_, nonlinearity, torch.rand(4, 9) < 0.4, n=23)


@pytest.mark.parametrize("config", [FORMS[0], FORMS[3], FORMS[5], PASSING], ids=str)
@pytest.mark.parametrize("where", ["first", "last", "all", "none", "one row"])
def test_at_the_ends_of_time(kernels, config, where):
    resets = torch.full((4, 9), where == "all")
    if where == "first":
        resets[0] = True
    elif where == "last":
        resets[-1] = True
    elif where == "one row":
        resets[:, 8] = True
    compare(kernels, config, False, "tanh", resets, n=20)


@pytest.mark.parametrize(
    ("config", "complex_"), [*product(FORMS, (False, True)), (PASSING, False)], ids=str
)
def test_nothing_that_is_not_finite_crosses_a_reset(kernels, complex_, config):
    x, h, w, b = moved(draw(complex_, "modrelu", 5, 4, 20, torch.float32), kernels.device)
    resets = torch.zeros(5, 4, dtype=torch.bool, device=kernels.device)
    resets[2, 1:3] = resets[0, 3] = True
    with torch.no_grad():
        x[:2, 1] = torch.nan
        h[3] = torch.inf
    with kernels.backend(), choice.using(dict.fromkeys(NAMES, config)):
        states, _ = recurrence(x, h, w, b, "modrelu", resets=resets)
        cotangent = torch.ones_like(states)
        cotangent[3, 2] = torch.inf
        by_x, by_h = torch.autograd.grad(states, (x, h), cotangent)
    assert states[:2, 1].isnan().any()
    assert states[2:].isfinite().all()
    assert states[:, 3].isfinite().all()
    assert not by_x[2, 2].isfinite().all()
    assert by_x[:2, 2].isfinite().all()
    assert by_h[2:].isfinite().all()
    assert torch.count_nonzero(by_h[3]) == 0


@pytest.mark.parametrize("config", [FORMS[0], FORMS[3], FORMS[5], PASSING], ids=str)
def test_half_precision(kernels, config):
    resets = torch.rand(3, 9) < 0.4
    tensors = small_weight(draw(False, "tanh", 3, 9, 30, torch.bfloat16))
    with choice.using(dict.fromkeys(NAMES, config)):
        floor = float(torch.finfo(torch.bfloat16).eps)
        check(kernels, tensors, False, "tanh", floor, resets)


def test_no_resets_are_bit_for_bit_what_false_resets_are(kernels):
    for config in (*FORMS, PASSING):
        tensors = moved(draw(False, "modrelu", 4, 9, 20, torch.float32), kernels.device)
        none = torch.zeros(4, 9, dtype=torch.bool, device=kernels.device)
        found = []
        with kernels.backend(), choice.using(dict.fromkeys(NAMES, config)):
            for resets in (None, none):
                states, last = recurrence(*tensors, "modrelu", resets=resets)
                found.append([states, last, *torch.autograd.grad(states.square().sum(), tensors)])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_strided_resets(kernels):
    tensors = moved(draw(False, "tanh", 4, 9, 20, torch.float32), kernels.device)
    resets = (torch.rand(4, 9) < 0.4).to(kernels.device)
    with kernels.backend():
        wanted, _ = recurrence(*tensors, "tanh", resets=resets)
        found, _ = recurrence(*tensors, "tanh", resets=resets.mT.contiguous().mT)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("steps", [3, 12])
def test_all_of_time_is_one_launch_each_way(kernels, launches, steps):
    tensors = moved(draw(False, "tanh", steps, 9, 20, torch.float32), kernels.device)
    resets = (torch.rand(steps, 9) < 0.4).to(kernels.device)
    recurrence(*tensors, "tanh", resets=resets)[0].sum().backward()
    assert [name for name, _ in launches] == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_without_resets_the_compiler_is_given_none(name):
    """So that it makes the code that it made before there were resets."""
    for problem in KERNELS[name].compiled:
        config = closed_form(problem, H100)
        kinds = {}
        for resets in (False, True):
            variant = {"nonlinearity": "tanh", "dtype": torch.float32, "precision": "highest"}
            kernel, values, fixed = launches_of(problem, config, **variant, resets=resets)[0]
            one = binary(kernel, values, fixed, "sm_90", "")
            kinds[resets] = dict(one.signature)["resets"], dict(one.constants).get("resets", "given")
        assert kinds == {False: ("constexpr", None), True: ("*i1", "given")}


@pytest.mark.parametrize("name", NAMES)
def test_every_size_is_compiled_ahead_of_time_with_resets_and_without(name):
    for listed in (problems(full=False), problems(full=True)):
        compiled = {False: set(), True: set()}
        for problem, variant in listed:
            if problem.operation == name:
                compiled[variant["resets"]].add(problem)
        assert compiled[False] == compiled[True] == set(KERNELS[name].compiled)
    assert any(variant["resets"] for problem, variant in tiny_problems() if problem.operation == name)


def test_a_tuning_table_is_of_the_loop_without_resets():
    """Both choose tiles by the same bucket; what is timed is the variant that comes first."""
    problem = Problem("recurrence", False, 1, 128, 64, 1)
    assert not next(KERNELS["recurrence"].variants_of(problem))["resets"]
