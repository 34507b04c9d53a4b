"""Kernels that check themselves: a wrong one is never used, and a right one is asked once."""

import json
import threading
import warnings
from dataclasses import replace

import pytest
import torch

import projunn
from projunn.nn import UnitaryRNN
from projunn_kernels import FusedStep, fused_step_, rank_update_, selfcheck
from projunn_kernels.configs import choice, tables
from projunn_kernels.configs.closed_form import closed_form
from projunn_kernels.configs.kernel import KERNELS, Inputs
from projunn_kernels.configs.problem import Config, Device, Problem
from projunn_kernels.launching import intercepted
from projunn_kernels.step.passes import Passes

pytestmark = pytest.mark.interpreter_only
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _always(monkeypatch, tmp_path, kernels):
    monkeypatch.setenv("PROJUNN_SELFCHECK", "always")
    monkeypatch.setenv("PROJUNN_CACHE", str(tmp_path))
    selfcheck.forget()
    with kernels.backend():
        yield
    selfcheck.forget()


class TheOldBackwardLoop:
    """What a compiled kernel once did: ``following`` was not carried, and stayed at the last time step.

    Of a real tanh: dz_t = f'(h_t) (g_t + dz_T conj(W)) for every t < T, where dz_{t+1} was meant.
    """

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        if self.kernel.__name__ != "recurrence_backward_kernel":
            return self.kernel[grid]

        def run(*, grad, states, w, grad_inputs, grad_initial, **_):
            last = grad[-1] * (1 - states[-1] ** 2)
            grad_inputs.copy_((grad + last @ w) * (1 - states**2))
            grad_inputs[-1] = last
            grad_initial.copy_(last @ w)

        return run


def gradients_of(rnn, x):
    rnn.zero_grad()
    rnn(x)[0].square().sum().backward()
    return [p.grad.clone() for p in rnn.parameters()]


def test_a_backward_loop_that_the_compiler_got_wrong_is_caught():
    rnn, x = UnitaryRNN(3, 40, nonlinearity="tanh"), torch.randn(6, 5, 3)
    with projunn.backend("torch"):
        expected = gradients_of(rnn, x)
    with intercepted(TheOldBackwardLoop):
        with pytest.warns(RuntimeWarning, match="replaced by PyTorch.*recurrence_backward real"):
            found = gradients_of(rnn, x)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # it is said once
            again = gradients_of(rnn, x)
    for one, other, wanted in zip(found, again, expected, strict=True):
        torch.testing.assert_close(one, wanted)
        torch.testing.assert_close(other, wanted)


def test_without_the_check_that_loop_gives_wrong_gradients(monkeypatch):
    """So that the test above cannot pass for another reason."""
    monkeypatch.setenv("PROJUNN_SELFCHECK", "off")
    rnn, x = UnitaryRNN(3, 40, nonlinearity="tanh"), torch.randn(6, 5, 3)
    with projunn.backend("torch"):
        expected = gradients_of(rnn, x)
    with intercepted(TheOldBackwardLoop):
        found = gradients_of(rnn, x)
    assert any((a - b).abs().max() > 0.01 * b.abs().max() for a, b in zip(found, expected, strict=True))


class WithoutResets:
    """Kernels that know of no resets, as those of the time loop once did not."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda **arguments: self.kernel[grid](**arguments | {"resets": None})


def test_the_loop_with_resets_is_checked_apart_from_the_one_without():
    rnn, x = UnitaryRNN(3, 40, nonlinearity="tanh"), torch.randn(6, 5, 3)
    resets = torch.zeros(6, 5, dtype=torch.bool)
    resets[3, 1:] = True

    def found():
        rnn.zero_grad()
        states, _ = rnn(x, resets=resets)
        states.square().sum().backward()
        return [states.detach(), *(p.grad.clone() for p in rnn.parameters())]

    with projunn.backend("torch"):
        expected = found()
    with intercepted(WithoutResets):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            gradients_of(rnn, x)
        with pytest.warns(RuntimeWarning, match="replaced by PyTorch") as said:
            replaced = found()
    texts = [str(one.message) for one in said if "replaced by PyTorch" in str(one.message)]
    assert ["resets=True" in text for text in texts] == [True, True]
    for one, wanted in zip(replaced, expected, strict=True):
        torch.testing.assert_close(one, wanted)


def test_a_kernel_that_does_not_compile_is_replaced():
    class Broken:
        def __init__(self, kernel):
            pass

        def __getitem__(self, grid):
            raise RuntimeError("PassManager::run failed")

    weight = torch.zeros(20, 20)
    with (
        intercepted(Broken),
        pytest.warns(RuntimeWarning, match="RuntimeError: PassManager::run failed"),
    ):
        rank_update_(weight, torch.ones(20, 1), torch.ones(20, 1))
    assert torch.equal(weight, torch.ones(20, 20))


def test_a_step_that_a_check_refuses_prepares_its_launches_once(monkeypatch):
    """Later ones go to PyTorch at once, until verdicts are asked for anew."""
    made = []

    class Counted(Passes):
        def __init__(self, step, rule):
            made.append(step)
            super().__init__(step, rule)

    def refused(*_, **__):
        raise selfcheck.Distrusted("of the basis")

    monkeypatch.setattr("projunn_kernels.step.launch.Passes", Counted)
    monkeypatch.setattr("projunn_kernels.step.passes.plane_rows_launch", refused)
    monkeypatch.setenv("PROJUNN_SELFCHECK", "off")
    weight, basis = torch.eye(130), torch.randn(130, 1)
    counters = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    tensors = [[t] for t in (weight, torch.randn(130, 130), basis, basis.clone(), *counters)]
    for _ in range(3):
        before = weight.clone()
        fused_step_(FusedStep(*tensors, 0.1))
        assert not torch.equal(weight, before)
    assert len(made) == 1
    selfcheck.forget()
    fused_step_(FusedStep(*tensors, 0.1))
    assert len(made) == 2


def test_a_right_kernel_is_checked_once():
    names = []

    class Counting:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            names.append(self.kernel.__name__)
            return self.kernel[grid]

    with intercepted(Counting), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for _ in range(3):
            rank_update_(torch.zeros(20, 20), torch.ones(20, 1), torch.ones(20, 1))
    assert len(names) == 4  # and the check's own


def test_problems_of_one_check_are_checked_once(monkeypatch):
    """Other sizes of the same tiles and alignment, as the layers of a network have."""
    kernel, checked = KERNELS["product"], []
    variant = next(kernel.variants_of(kernel.compiled[0]))

    def check(kernel, small, *_):
        checked.append(small)
        return selfcheck.Verdict("product", "a GPU", "3.8.0", ""), True

    monkeypatch.setattr(selfcheck, "_check", check)
    monkeypatch.setattr(selfcheck, "device_of", lambda device: Device())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for n in (1024, 2048, 1024, 2050):
        problem = Problem("product", False, 1, n, n, 1)
        selfcheck.require(problem, closed_form(problem, Device()), variant, torch.device("cuda", 0))
    assert [small.n % 16 == 0 for small in checked] == [True, False]


def test_verdicts_are_kept_and_read(tmp_path, monkeypatch):
    good = selfcheck.Verdict("product real", "a GPU", "3.8.0", "")
    bad = replace(good, problem="its error is 7 times what is allowed")
    selfcheck._keep("a", good)
    selfcheck._keep("b", bad)
    file = tables.cache_folder() / "verdicts.jsonl"
    file.write_text(file.read_text() + '{"key": "c", "kern')  # a process that died while it wrote
    selfcheck.forget()
    assert selfcheck.verdicts() == [good, bad]
    assert json.loads(file.read_text().splitlines()[1])["problem"] == bad.problem


def test_unknown_mode(monkeypatch):
    monkeypatch.setenv("PROJUNN_SELFCHECK", "sometimes")
    with pytest.raises(ValueError, match="PROJUNN_SELFCHECK: got 'sometimes', wanted one of auto"):
        rank_update_(torch.zeros(4, 4), torch.ones(4, 1), torch.ones(4, 1))


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_the_small_problem_is_of_the_same_variant(name):
    """The same constants and options, whatever the size: what is checked is what is launched."""
    from projunn_kernels.tuning.aot_problems import launches_of

    kernel = KERNELS[name]

    def constants(problem, config, variant):
        return [(one[0].__name__, one[2]) for one in launches_of(problem, config, **variant)]

    whole_space = [replace(kernel.compiled[-1], m=m, n=40) for m in (36, 40)] if name == "turn" else []
    for problem in [*kernel.compiled, *whole_space]:
        config = closed_form(problem, Device())
        small = selfcheck.smaller(kernel, problem, config)
        for variant in kernel.variants_of(problem):
            assert constants(problem, config, variant) == constants(small, config, variant)


def test_a_program_of_a_check_does_one_after_the_other():
    """As those of a GPU do where there are more matrices, or tiles, than programs."""
    most = []

    class Watching:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def run(**arguments):
                most.append(arguments.get("count", arguments.get("tiles", grid[0])) / grid[0])
                self.kernel[grid](**arguments)

            return run

    for name in ("triangle", "polish"):
        kernel = KERNELS[name]
        problem = min(kernel.compiled, key=lambda one: (one.pairs, one.k, one.n))
        config, variant = closed_form(problem, Device()), next(kernel.variants_of(problem))
        small = selfcheck.smaller(kernel, problem, config)
        with intercepted(Watching):
            assert selfcheck._check(kernel, small, config, variant, CPU)[0].problem == ""
        assert max(most) >= 2, name
        most.clear()


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_case_of_each_kernel_passes_its_check(name):
    kernel = KERNELS[name]
    problem = min(kernel.compiled, key=lambda problem: (problem.n, problem.m, problem.k))
    small = selfcheck.smaller(kernel, problem, closed_form(problem, Device()))
    variant = list(kernel.variants_of(problem))[-1]
    assert selfcheck.compare(kernel, small, variant, CPU) == ""


@pytest.mark.parametrize(
    ("name", "m", "n"),
    [
        *((name, 1, n) for name in ("recurrence", "product", "basis", "fused_step") for n in (16, 1)),
        *((name, 50, 1) for name in ("recurrence", "product", "basis")),
    ],
)
def test_a_size_of_one_is_checked_as_one(name, m, n):
    """Triton makes a constant of it, and so compiles other code."""
    kernel = KERNELS[name]
    problem = replace(min(kernel.compiled, key=lambda one: (one.k, one.pairs)), m=m, n=n)
    small = selfcheck.smaller(kernel, problem, closed_form(problem, Device()))
    assert m > 1 or small.m == 1
    assert n > 1 or small.n == 1
    variant = list(kernel.variants_of(problem))[-1]
    assert selfcheck.compare(kernel, small, variant, CPU) == ""


def test_a_check_leaves_the_random_numbers_alone():
    state = torch.random.get_rng_state()
    kernel = KERNELS["product"]
    problem = Problem("product", False, 1, 20, 20, 1)
    kernel.case(problem, Inputs(CPU), listed="all", gradient=None)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_went_wrong_by_chance_is_no_verdict_for_ever(monkeypatch):
    """A disk that is full, say.  What a compiler says of a kernel is one."""
    kernel = KERNELS["product"]
    small = selfcheck.smaller(kernel, kernel.compiled[0], closed_form(kernel.compiled[0], Device()))
    config, variant = closed_form(small, Device()), next(kernel.variants_of(small))

    class CompilationError(Exception):
        pass

    for error, lasts in ((OSError("no space left"), False), (CompilationError("no"), True)):

        def fails(*_, error=error):
            raise error

        monkeypatch.setattr(selfcheck, "compare", fails)
        verdict, kept = selfcheck._check(kernel, small, config, variant, CPU)
        assert type(error).__name__ in verdict.problem
        assert kept is lasts


def test_configurations_that_are_given_are_those_of_a_thread():
    seen = []
    with choice.using({"product": Config(2, 2, 4)}):
        thread = threading.Thread(target=lambda: seen.append(choice.settled()))
        thread.start()
        thread.join()
        assert not choice.settled()
    assert seen == [True]
    assert choice.settled()
