"""The autotuner in Triton's interpreter, with a clock and compilers of the tests' own."""

from dataclasses import asdict

import pytest
import torch

from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs import tables
from projunn_kernels.configs.closed_form import candidates, closed_form, tuned
from projunn_kernels.configs.problem import Device, Problem
from tests.launches import watched

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("folders")

GPU = Device("Test GPU 9000", "9.0", 132, 232_448)
interpreted = pytest.mark.interpreter_only  # a stand-in for a GPU
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
CPU = torch.device("cpu")


def file(device=GPU):
    return tables.cache_folder() / tables.table_name(device.name)


def small(operation, k=1):
    return Problem(operation, False, k, 16, 16, 1)


def tune(problem, times, **options):
    """Tune with a clock that gives each configuration its time, 1 if it has none."""
    from projunn_kernels.tuning.autotune import autotune

    tried = []

    def timer(run):
        run()
        tried.append(tuning.config_for(problem, GPU)[0])
        given = times.get(tried[-1], 1.0)
        return given.pop(0) if isinstance(given, list) else given

    (result,) = autotune([problem], CPU, GPU, timer, **options)
    return result, tried


def written():
    return tables.read_table(file()).entries


@pytest.mark.parametrize("operation", tuned())
def test_what_is_timed_beside_a_kernel_does_not_grow_with_the_matrices(kernels, operation):
    """Copies of each matrix would hide what tiles change: a candidate has to win by 2 % of it all."""
    from projunn_kernels.tuning import autotune

    def calls(matrices):
        run, _ = autotune._case(Problem(operation, False, 1, 16, 16, matrices), kernels.device)
        with kernels.backend():
            run()  # makes the tables of addresses
        with watched(kernels, run=False) as seen:
            run()
        return seen.calls

    assert calls(1) == calls(5)


@interpreted
@pytest.mark.parametrize("operation", tuned())
def test_every_operation_runs_and_the_fastest_wins(operation):
    problem = Problem(operation, False, 1, 16, 512 if operation == "basis" else 16, 1)
    first, *others = candidates(problem, GPU)
    fastest = others[-1] if others else first
    result, tried = tune(problem, {fastest: 0.5})
    assert result.failed == ""
    assert result.config == fastest
    assert tried == [first, *others] + ([first, fastest] if others else [])  # and once more
    assert result.tried == 1 + len(others)
    assert tuning.config_for(problem, GPU)[0] == fastest
    (found,) = written().values()
    assert found.config == (fastest if others else None)
    assert found.milliseconds == 0.5
    assert found.closed_form_milliseconds == (1.0 if others else 0.5)
    named = {
        "basis": "plane_basis",
        "fused_step": "plane_step",
        "fourier_transform": "plane_transform",
        "fourier_inverse": "plane_inverse",
    }
    expected = {f"{named.get(operation, operation)}_kernel"}
    if operation == "rotate_ahead":
        expected.add("ahead_is_sound_kernel")
    if operation.startswith("recurrence"):
        expected.add(f"{operation.replace('recurrence', 'recurrence_step')}_kernel")
    if others:
        assert set(found.kernels) == expected  # not what a turn launches beside it


@interpreted
@pytest.mark.parametrize(
    ("times", "kept"),
    [([0.981, 0.5], True), ([0.979, 0.979], False), ([0.5, 0.981], True), ([0.5, 0.6], False)],
)
def test_the_closed_form_stays_unless_a_candidate_wins_by_2_percent_twice(times, kept):
    first, *_, fastest = candidates(small("product"), GPU)
    result, _ = tune(small("product"), {fastest: list(times)})
    assert result.kept == kept
    assert result.config == (first if kept else fastest)
    (found,) = written().values()
    assert found.config == (None if kept else fastest)
    assert found.milliseconds == (1.0 if kept else times[1])  # of the second time: the first chose it
    assert found.closed_form_milliseconds == 1.0
    config, why = tuning.config_for(small("product"), GPU)
    assert config == (first if kept else fastest)
    assert why == (f"closed form, the fastest in {file()}" if kept else str(file()))


@interpreted
def test_interruption_keeps_what_is_done_and_failures_are_no_candidates():
    from projunn_kernels.tuning.autotune import autotune

    first = closed_form(small("product"), GPU)

    def timer(run):
        config, _ = tuning.config_for(small("product"), GPU)
        if config == first:
            raise RuntimeError("out of resource: shared memory")
        return 1.0

    results = autotune([small("product"), small("rank_update")], CPU, GPU, timer)
    result = next(results)
    assert result.config not in (None, first)
    results.close()  # what Ctrl-C does
    assert list(written()) == [small("product").bucket]
    assert written()[small("product").bucket].closed_form_milliseconds is None
    assert asdict(result.config)["rows"] >= 1

    def broken(run):
        raise RuntimeError("no")

    (result,) = autotune([small("product")], CPU, GPU, broken)
    assert (result.config, result.failed) == (None, "no")


@interpreted
def test_what_spills_is_no_candidate(monkeypatch):
    from projunn_kernels.tuning import autotune as module

    problem = small("product")
    first = closed_form(problem, GPU)

    def spills(run):
        run()
        return tuning.config_for(problem, GPU)[0].rows == first.rows

    monkeypatch.setattr(module, "spills", spills)
    result, timed = tune(problem, {})
    assert timed == [c for c in candidates(problem, GPU) if c.rows != first.rows]
    assert result.config in timed


class StandInCompilers:
    """Notes what is compiled, and says that some of it cannot be."""

    processes = 1

    def __init__(self, broken=lambda work: False):
        self.calls, self._broken = [], broken

    def compile(self, wanted, *, until, done):
        self.calls.append(list(wanted))
        done(len(wanted))
        return {one: "no" if self._broken(one) else "" for one in wanted}


@interpreted
def test_candidates_are_compiled_ahead_each_binary_once_and_nothing_is_timed_meanwhile():
    from projunn_kernels.tuning.autotune import autotune

    events, compilers = [], StandInCompilers()
    problems = [Problem("product", False, 1, n, n, 1) for n in (16, 32)]
    for result in autotune(
        problems, CPU, GPU, lambda run: events.append("timed") or 1.0,
        compilers=compilers, tell=lambda progress: events.append(progress.what),
    ):  # fmt: skip
        events.append(result.problem.n)
    assert len(compilers.calls) == 2
    for problem, wanted in zip(problems, compilers.calls, strict=True):
        assert {one.kernel for one in wanted} == {"product_kernel"}
        tiles = {(dict(one.constants)["BM"], dict(one.constants)["BN"]) for one in wanted}
        tried = candidates(problem, GPU)
        assert tiles <= {(config.rows, config.columns) for config in tried}
    every = [one for wanted in compilers.calls for one in wanted]
    assert len(set(every)) == len(every) > len(candidates(problems[0], GPU))
    assert events.index("timed") > events.index(f"compiling, {len(compilers.calls[0])} of "
                                                f"{len(compilers.calls[0])} kernels")  # fmt: skip
    between = events[events.index(16) + 1 : events.index(problems[1].bucket)]
    assert "timed" not in between


@interpreted
def test_what_cannot_be_compiled_is_not_launched():
    problem = small("product")
    first = closed_form(problem, GPU)

    def broken(work):
        return dict(work.constants)["BM"] == first.rows

    result, timed = tune(problem, {}, compilers=StandInCompilers(broken))
    assert timed == [c for c in candidates(problem, GPU) if c.rows != first.rows]
    assert result.config in timed
    result, timed = tune(problem, {}, compilers=StandInCompilers(lambda work: True))
    assert (result.config, result.failed, timed) == (None, "no", [])


@interpreted
def test_progress_is_told_with_the_time_that_is_left():
    from projunn_kernels.tuning.autotune import autotune

    told = []
    problems = [small("product"), small("rank_update")]
    list(autotune(problems, CPU, GPU, lambda run: 1.0, tell=told.append))
    total = sum(len(candidates(problem, GPU)) for problem in problems)
    assert [(one.what, one.timed, one.candidates) for one in told] == [
        (problems[0].bucket, 0, total),
        (problems[1].bucket, len(candidates(problems[0], GPU)), total),
    ]
    assert told[1].seconds_left > 0


@interpreted
def test_time_limit_and_each_bucket_once():
    from projunn_kernels.tuning.autotune import autotune

    assert list(autotune([small("product")], CPU, GPU, lambda run: 1.0, seconds=-1)) == []
    twice = [small("product"), Problem("product", False, 1, 15, 16, 1)]
    assert len(list(autotune(twice, CPU, GPU, lambda run: 1.0))) == 1


@interpreted
def test_what_a_kernel_changes_is_restored(monkeypatch):
    from projunn_kernels.tuning import autotune

    seen, case = [], autotune._case

    def watched(problem, device):
        run, restore = case(problem, device)
        weight = run.__self__.tensors["weight"]
        return run, lambda: (restore(), seen.append([weight.clone()]))

    monkeypatch.setattr(autotune, "_case", watched)
    list(autotune.autotune([small("rank_update")], CPU, GPU, lambda run: (run(), 1.0)[1]))
    assert len(seen) > 1
    for later in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], later, strict=True))


def test_clocks_are_warmed_up_where_the_gpu_has_been_idle(monkeypatch):
    from projunn_kernels.tuning import timing

    now, work = [100.0], []
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])

    def busy():
        work.append(now[0])
        now[0] += 0.05

    warmth = timing.Warmth()
    warmth.ensure(busy)
    assert now[0] - 100.0 >= warmth.WORK
    done = len(work)
    now[0] += 0.5 * warmth.LASTS
    warmth.ensure(busy)
    assert len(work) == done  # it was busy a moment ago
    now[0] += 2 * warmth.LASTS
    warmth.ensure(busy)
    assert len(work) > done
