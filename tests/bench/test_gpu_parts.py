"""What ``make gpu`` is made of: the pool of processes, the order, the targets, the page."""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

import bench.gpu
import projunn
from bench.gpu import (
    driver,
    history,
    published,
    reporter,
    stages,
    suite,
    summary,
    targets,
    timing,
    weights,
)
from bench.gpu.case import Absent, Case, interleaved, one_of_each_kind
from bench.gpu.machine import Machine
from bench.gpu.pool import Pool

pytestmark = [
    pytest.mark.requires("triton"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="make gpu itself runs here"),
]
REAL = Machine(dry=False)


@pytest.fixture(autouse=True)
def _backend():
    """Making a dry `Machine` chooses the backend of the process."""
    with projunn.backend("auto"):
        yield


def outcomes(tmp_path, calls, workers=1, seconds=60.0, longest=30.0):
    """The rows of cases by name, and the process that each ran in, in a pool of forked workers."""

    def where(call):
        return lambda: {"value": call(), "process": os.getpid()}

    cases = [Case(name, "kind", where(call)) for name, call in calls.items()]
    pool = Pool(multiprocessing.get_context("fork"), dry=True, log=tmp_path / "log.txt")
    limits = {"workers": workers, "seconds": seconds, "longest": longest}
    return {row["name"]: row for row in pool.outcomes(lambda on: cases, list(calls), **limits)}


def fail(words):
    raise RuntimeError(words)


def test_a_process_that_dies_fails_its_case_and_no_other(tmp_path):
    calls = {
        "before": lambda: 1,
        "dies": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "leaves": lambda: os._exit(7),
        "after": lambda: 2,
    }
    rows = outcomes(tmp_path, calls)
    assert rows["dies"]["problem"] == "the process died: SIGSEGV"
    assert rows["leaves"]["problem"] == "the process died: exit status 7"
    assert (rows["before"]["value"], rows["after"]["value"]) == (1, 2)
    assert rows["before"]["problem"] == rows["after"]["problem"] == ""
    assert rows["before"]["process"] != rows["after"]["process"]


def test_a_process_that_cannot_go_on_is_replaced(tmp_path, monkeypatch):
    calls = {
        "first": lambda: 1,
        "fails": lambda: fail("CUDA error: an illegal memory access\nwas encountered"),
        "second": lambda: 2,
    }
    rows = outcomes(tmp_path, calls)
    assert rows["first"]["process"] == rows["second"]["process"]  # an error that does no harm
    monkeypatch.setattr(Machine, "sound", lambda self: False)
    rows = outcomes(tmp_path, calls)
    assert rows["fails"]["problem"] == "RuntimeError: CUDA error: an illegal memory access"
    assert rows["first"]["process"] != rows["second"]["process"]
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_case_that_takes_too_long_is_killed_and_the_next_is_run(tmp_path):
    rows = outcomes(tmp_path, {"long": lambda: time.sleep(60), "next": lambda: 1}, longest=0.5)
    assert rows["long"]["problem"] == "killed after 0 s"
    assert "cut" not in rows["long"]
    assert rows["next"]["value"] == 1


def test_when_the_time_is_up_what_was_done_stays(tmp_path):
    calls = {"done": lambda: 1, "long": lambda: time.sleep(60), "never": lambda: 2}
    started = time.monotonic()
    rows = outcomes(tmp_path, calls, seconds=2.0)
    assert time.monotonic() - started < 20
    assert rows["done"]["value"] == 1
    assert rows["long"]["cut"]
    assert "were up" in rows["long"]["problem"]
    assert "never" not in rows


def test_workers_share_the_cases(tmp_path):
    calls = {str(i): functools.partial(time.sleep, 0.3) for i in range(6)}
    rows = outcomes(tmp_path, calls, workers=3)
    assert len(rows) == 6
    assert len({row["process"] for row in rows.values()}) == 3


def test_what_is_absent_is_no_failure(tmp_path):
    def absent():
        raise Absent("geoopt is not installed")

    row = outcomes(tmp_path, {"peer": absent})["peer"]
    assert (row["absent"], row["problem"]) == ("geoopt is not installed", "")


def test_a_source_that_fails_is_an_error_and_not_a_hang(tmp_path):
    pool = Pool(multiprocessing.get_context("fork"), dry=True, log=tmp_path / "log.txt")
    with pytest.raises(RuntimeError, match="do not start"):
        list(pool.outcomes(lambda on: fail("no cases"), ["a"], workers=1, seconds=60, longest=30))


def test_any_beginning_of_the_order_has_every_kind_and_what_was_never_checked():
    names = [(f"{kind}{i}", kind) for kind in "abc" for i in range(3)]
    cases = [Case(name, kind, lambda: 0.0) for name, kind in names]
    dates = {"a0": "2026-02-01", "a1": "2026-01-01", "b0": "2026-03-01", "c0": "2026-01-02"}
    order = interleaved(cases, dates)
    assert sorted(order) == sorted(name for name, _ in names)
    assert {name[0] for name in order[:3]} == set("abc")
    assert set(order[:3]) == {"a2", "b1", "c1"}  # what never passed
    assert order[-3:] == ["c0", "a0", "b0"]  # of the rest, what passed longest ago first
    assert one_of_each_kind(cases) == ["a0", "b0", "c0"]


def test_names_are_unique_and_every_target_finds_its_rows():
    cases = {name: source(REAL) for name, source in stages.SOURCES.items() if name != "compile"}
    names = [case.name for own in cases.values() for case in own]
    assert len(names) == len(set(names))
    known = {*names, "tests", "checks", "run"}
    known |= {
        f"{targets.convolution.part_name(*c)}, of the limit" for c in targets.convolution.part_cases()
    }
    wanted = {name for t in targets.targets() for name in (t.own, t.peer) if name is not None}
    assert wanted <= known
    labels = [(t.group, t.label) for t in targets.targets()]
    assert len(labels) == len(set(labels))


def test_verdicts():
    own, peer = "SGD k1 1024x1024 float32, captured", "torch.optim.SGD 1024x1024 float32, captured"
    group = "SGD / torch.optim.SGD, captured 1024"

    def verdict(*rows):
        judged = {row["name"]: row for row in targets.judged(rows)}
        return tuple(judged[group][key] for key in ("value", "verdict", "lacking", "why"))

    assert verdict({"name": own, "ms": 2.0}, {"name": peer, "ms": 2.0}) == (1.0, "met", "", "")
    assert verdict({"name": own, "ms": 3.0}, {"name": peer, "ms": 2.0}) == (1.5, "missed", "", "")
    assert verdict({"name": own, "ms": 3.0}) == (None, "not run", peer, "not come to")
    failed = {"name": own, "problem": "RuntimeError: capture failed"}
    lacking = (None, "not run", own, "RuntimeError: capture failed")
    assert verdict(failed, {"name": peer, "ms": 2.0}) == lacking
    rate = targets.training.NAME
    judged = {row["own"]: row["verdict"] for row in targets.judged([{"name": rate, "steps_per_s": 151}])}
    assert judged[rate] == "met"  # a least value


def test_the_stages_fit_in_five_minutes_and_in_two():
    lines = [line.split() for line in bench.gpu.__doc__.splitlines()]
    table = {line[2]: (int(line[0]), int(line[1])) for line in lines if line and line[0].isdigit()}
    assert table == stages.SECONDS
    for quick, seconds in targets.RUN_SECONDS.items():
        assert sum(both[quick] for both in stages.SECONDS.values()) <= seconds


def everything():
    """Rows as a whole run leaves them."""
    rows = []
    for stage, source in stages.SOURCES.items():
        rows.append(
            {
                "stage": "run",
                "name": f"stage {stage}",
                "seconds": 33.3,
                "outcome": "99 of 99 run in 16 processes",
            }
        )
        for case in source(REAL):
            row = {
                "stage": stage,
                "name": case.name,
                "kind": case.kind,
                "problem": "",
                "seconds": 9.99,
                "what": case.name,
            }
            row |= {
                "share": 0.1234,
                "ms": 12.345,
                "issue_us": 1234.5,
                "total_us": 1234.6,
                "gain": 0.1234,
                "flops": 1e9,
            }
            kernels = [{"kernel": "a_kernel_with_a_long_name" * 2, "us": 123.4, "count": 1}]
            row |= {"kernels": kernels, "launches": 15.0, "device_us": 123.4, "steps_per_s": 99.9}
            rows.append(row)
    tests = {"stage": "tests", "kind": "test", "outcome": "passed", "problem": ""}
    return rows + [tests | {"name": f"tests/kernels/test_products.py::test_{i}"} for i in range(300)]


@pytest.mark.parametrize("failures", [0, 3, 400])
def test_the_page_stays_within_its_limits_and_says_what_matters(failures):
    machine = dict.fromkeys(
        ("gpu", "capability", "memory_gib", "cores", "cpu", "torch", "triton", "python"), "X" * 12
    )
    rows = everything()
    for row in [row for row in rows if row["stage"] in ("tests", "checks")][:failures]:
        row |= {"problem": "RuntimeError: " + "words " * 60, "outcome": "failed"}
    judged = targets.judged(
        [*rows, {"name": "run", "seconds": 290}, {"name": "checks", "failed": failures}]
    )
    page = summary.page(machine | {"commit": "0123456", "date": "2026-11-27"}, rows, judged, 290.0)
    assert len(page.splitlines()) <= 60
    assert len(page) <= 12_000
    assert max(map(len, page.splitlines())) <= summary.WIDTH
    assert "lines more" not in page
    for words in (
        "stages",
        "tests",
        "checks",
        "targets",
        "host us",
        "tuning",
        "launches",
        "ResNet9 step",
        "0123456",
    ):
        assert words in page
    assert ("FAILED" in page.replace("0 FAILED", "")) == bool(failures)


def test_whatever_is_captured_was_built_for_it(monkeypatch):
    class Built(Exception):
        pass

    def note(parameters, **options):
        raise Built(options.get("capturable"))

    on = Machine(dry=True)
    on.capturable = True
    for rule in ("SGD", "RMSprop", "AdamW"):
        monkeypatch.setattr(projunn.optim, rule, note)
    asked = {}
    for case in (case for timings in stages.TIMINGS.values() for case in timings(on)):
        if case.way in ("captured", "graph"):
            with timing.cheap_initialization(), contextlib.suppress(Built):
                asked[case.name] = None
                case.build()
                del asked[case.name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(1024, 1024), (3, 64, 64), (20, 33), (2, 33, 20), (1, 1)])
def test_weights_are_unitary_and_dense(shape, dtype):
    weight = weights.reflected(torch.empty(shape, dtype=dtype))
    wide = weight if shape[-2] <= shape[-1] else weight.mH
    wide = wide.to(torch.complex128 if dtype.is_complex else torch.float64)
    error = wide @ wide.mH - torch.eye(wide.shape[-2], dtype=wide.dtype)
    assert torch.linalg.matrix_norm(error).max() / wide.shape[-2] ** 0.5 < 1e-6
    assert (weight != 0).float().mean() > 0.99


def test_layers_take_the_cheap_weights_only_inside():
    with timing.cheap_initialization():
        inside = projunn.nn.UnitaryLinear(300, 300)
    outside = projunn.nn.UnitaryLinear(300, 300)
    assert projunn.unitarity_defect(inside.weight) < 1e-6
    largest = [layer.weight.abs().max().item() for layer in (inside, outside)]
    assert largest[0] > 0.5 > largest[1]  # a permutation shines through


def test_history_forgets_what_failed(tmp_path):
    file = tmp_path / "shipped.json"
    file.write_text(
        json.dumps({"G": {"a": "2026-01-01", "b": "2026-01-01", "c": "2026-01-01"}, "H": {"a": "2025"}})
    )
    checks = [
        {"name": "a", "problem": "", "share": 0.1},
        {"name": "b", "problem": "wrong", "share": 9.0},
        {"name": "c", "problem": "killed", "cut": True},
    ]
    history.write(tmp_path, "G", checks, "2026-02-02", file)
    written = json.loads((tmp_path / history.NAME).read_text())
    assert written == {"G": {"a": "2026-02-02", "c": "2026-01-01"}, "H": {"a": "2025"}}
    assert history.passed("G", file) == {"a": "2026-01-01", "b": "2026-01-01", "c": "2026-01-01"}
    assert history.passed("unknown", file) == {}


def test_the_suite_on_a_gpu_is_what_touches_it_some_of_every_file_first():
    assert list(reporter.dealt([("a", 1), ("a", 2), ("b", 3), ("a", 4), ("b", 5)])) == [1, 3, 2, 5, 4]

    def touches(fixture, mark=None):
        marks = {mark: object()}
        return reporter.touches_gpu(
            SimpleNamespace(get_closest_marker=marks.get, fixturenames=(fixture,))
        )

    assert touches("kernels")
    assert touches("tmp_path", "requires_cuda")
    assert touches("path", "kernels")
    assert not touches("tmp_path")
    assert not touches("kernels", "interpreter_only")


def test_published_code_is_found_by_its_path_and_beside_ours(tmp_path, monkeypatch):
    monkeypatch.delitem(published.sys.modules, "published_projunn", raising=False)
    monkeypatch.delenv(published.VARIABLE, raising=False)
    with pytest.raises(Absent, match="PUBLISHED is not set"):
        published.module("utils")
    folder = tmp_path / "projunn"
    folder.mkdir()
    (folder / "utils.py").write_text(
        "def LSI_approximation(A, k):\n    return A[:, :k], A[:, :k]\n"
        "def projUNN_T(A, a, b, project_on=True):\n    return a @ b.mH\n"
        "projUNN_D = None\n"
    )
    (folder / "layers.py").write_text("<<<<<<< a merge that was not resolved\n")
    (folder / "models.py").write_text(
        "from torch import nn\nfrom . import utils\n"
        "def FullWidthConv2d(n, m, side):\n    return nn.Conv2d(n, m, side)\n"
    )
    monkeypatch.setenv(published.VARIABLE, str(tmp_path))
    weight = torch.eye(3)
    published.step(weight, torch.ones(3, 3), "T")()
    assert not torch.equal(weight, torch.eye(3))
    assert published.convolution(2, 4, torch.device("cpu")).kernel_size == (4, 4)
    with pytest.raises(Absent, match="does not load"):
        published.module("layers")
    assert projunn.__name__ == "projunn"


def suite_of(text, tmp_path, monkeypatch, seconds):
    file = tmp_path / "test_some.py"
    file.write_text(text)
    monkeypatch.setattr(suite, "_DRY", str(file))
    files = {"log": tmp_path / "log.txt", "report": tmp_path / "tests.jsonl"}
    return suite.tests(workers=1, seconds=seconds, dry=True, **files)


def test_outcomes_of_tests_are_written_down_with_their_messages(tmp_path, monkeypatch):
    text = (
        "import pytest\n\n"
        "def test_passes(): pass\n\n"
        "def test_fails(): assert 1 == 2, 'not equal'\n\n"
        "@pytest.fixture\ndef broken(): raise ValueError('no fixture')\n\n"
        "def test_error(broken): pass\n\n"
        "@pytest.mark.skip(reason='no')\ndef test_skipped(): pass\n"
    )
    rows, ending = suite_of(text, tmp_path, monkeypatch, 300.0)
    found = {
        row["name"].split("::")[1]: (row["outcome"], row["problem"].splitlines()[:1]) for row in rows
    }
    assert ending == ""
    assert found["test_passes"] == ("passed", [])
    assert found["test_skipped"] == ("skipped", [])
    assert found["test_fails"][0] == "failed"
    assert "not equal" in found["test_fails"][1][0]
    assert found["test_error"] == ("error", ["ValueError: no fixture"])


def test_a_kernel_that_distrusts_itself_is_a_failure_although_pytorch_takes_its_place(tmp_path):
    run = driver.Driver(tmp_path, dry=True)
    line = {"key": "0", "kernel": "rotate_rows real k=1", "gpu": "G", "triton": "3.6.0", "problem": ""}
    with (run.cache / "verdicts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        run.note_verdicts()
        assert not run.failures()
        file.write(json.dumps(line | {"kernel": "basis real k=2", "problem": "it is wrong"}) + "\n")
    run.note_verdicts()
    assert run.failures()
    written = [json.loads(row) for row in (tmp_path / "checks.jsonl").read_text().splitlines()]
    assert [(row["name"], row["problem"]) for row in written] == [
        ("self-check rotate_rows real k=1", ""),
        ("self-check basis real k=2", "it is wrong"),
    ]
