"""Configurations: closed form, tables, and the autotuner with a clock of its own."""

import json
import warnings
from dataclasses import asdict

import pytest
import torch

from projunn.cli import main
from projunn_kernels import tables, tuning
from projunn_kernels.closed_form import candidates, closed_form
from projunn_kernels.problems import OPERATIONS, Config, Device, Problem

GPU = Device("Test GPU 9000", "9.0", 132, 232_448)
PROBLEM = Problem("rank_update", False, 1, 40, 40, 2)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROJUNN_CACHE", str(tmp_path))
    tuning.forget()
    yield
    tuning.forget()


def file():
    return tables.cache_folder() / tables.table_name(GPU.name)


def winner(rows=8):
    return {PROBLEM.bucket: tables.entry(Config(rows, 64, 4), 0.5, 10.0)}


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 5, 33, 64, 128, 1000, 16384])
def test_closed_form_is_a_candidate_and_in_range(pairs, k, n):
    for operation in OPERATIONS:
        if operation == "fused_step" and n > 128:
            continue
        problem = Problem(operation, pairs, k, n, n, 3)
        found = candidates(problem, GPU)
        assert found[0] == closed_form(problem, GPU)
        assert len(set(found)) == len(found)
        for config in found:
            assert 1 <= config.warps <= 16
            assert config.rows & (config.rows - 1) == config.columns & (config.columns - 1) == 0


def test_a_table_is_in_force_at_once_and_merged():
    assert tuning.config_for(PROBLEM, GPU)[1] == "closed form"
    tables.write_table(GPU, winner())
    tables.write_table(GPU, {"product/real/k1/64x64/b1": tables.entry(Config(1, 64, 4), 1.0, 1.0)})
    tuning.forget()
    assert tuning.config_for(PROBLEM, GPU) == (Config(8, 64, 4), str(file()))
    content = json.loads(file().read_text())
    assert set(content) == {"format", "gpu", "capability", "triton", "torch", "date", "entries"}
    assert len(content["entries"]) == 2
    assert [path.name for path in tables.cache_folder().iterdir()] == [file().name]
    assert "1 buckets), then closed form" in tuning.in_force(GPU)["rank_update"]
    assert "no table for Test GPU 9000" in tuning.in_force(GPU)["fused_step"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: "{", "not a table"),
        (lambda c: json.dumps(c | {"format": 0}), "format is 0"),
        (lambda c: json.dumps(c | {"gpu": "Another"}), "measured on Another"),
        (lambda c: json.dumps(c | {"capability": "8.0"}), "measured on Test GPU 9000 .8.0"),
        (lambda c: json.dumps(c | {"entries": {"x": {"config": {"rows": 3}}}}), "not a table"),
        (lambda c: json.dumps(c).replace('"rows": 8', '"rows": 7'), "rows is 7"),
        (lambda c: json.dumps([]), "not a table"),
    ],
)
def test_a_broken_or_foreign_table_is_refused_with_a_warning(change, words):
    tables.write_table(GPU, winner())
    file().write_text(change(json.loads(file().read_text())))
    tuning.forget()
    with pytest.warns(UserWarning, match=f"tuning table ignored.*{words}"):
        assert tuning.config_for(PROBLEM, GPU) == (closed_form(PROBLEM, GPU), "closed form")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        tuning.config_for(PROBLEM, GPU)
    with pytest.warns(UserWarning, match="tuning table replaced"):
        tables.write_table(GPU, winner())
    tuning.forget()
    assert tuning.config_for(PROBLEM, GPU)[1] == str(file())


def test_using_overrides_and_ends():
    with tuning.using({"rank_update": Config(1, 16, 1)}):
        assert tuning.config_for(PROBLEM, GPU) == (Config(1, 16, 1), "given")
    assert tuning.config_for(PROBLEM, GPU)[1] == "closed form"


# -- the autotuner, in the interpreter ---------------------------------------------------------------

interpreted = pytest.mark.interpreter_only  # a stand-in for a GPU
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
CPU = torch.device("cpu")


def small(operation, k=1):
    return Problem(operation, False, k, 16, 16, 1)


@interpreted
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_runs_and_the_fastest_wins(operation):
    from projunn_kernels.jit.autotune import autotune

    clock = iter(range(1000, 0, -1))  # each call faster than the one before
    tried = []

    def timer(run):
        run()
        tried.append(tuning.config_for(small(operation), GPU)[0])
        return float(next(clock))

    (result,) = autotune([small(operation)], CPU, GPU, timer)
    assert result.failed == ""
    assert result.config == tried[-1]
    assert result.tried == len(tried) == len(candidates(small(operation), GPU))
    assert tuning.config_for(small(operation), GPU) == (tried[-1], str(file()))


@interpreted
def test_interruption_keeps_what_is_done_and_failures_are_no_candidates():
    from projunn_kernels.jit.autotune import autotune

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
    assert list(json.loads(file().read_text())["entries"]) == [small("product").bucket]
    assert asdict(result.config)["rows"] >= 1

    def broken(run):
        raise RuntimeError("no")

    (result,) = autotune([small("product")], CPU, GPU, broken)
    assert (result.config, result.failed) == (None, "no")


@interpreted
def test_what_spills_is_no_candidate(monkeypatch):
    from projunn_kernels.jit import launch
    from projunn_kernels.jit.autotune import autotune

    first, kernel = closed_form(small("product"), GPU), launch.product_kernel
    timed = []

    class Compiled:  # what a launch returns on a GPU
        def __getitem__(self, grid):
            def run(*args, **constants):
                kernel[grid](*args, **constants)
                self.n_spills = 8 if constants["BM"] == first.rows else 0
                return self

            return run

    def timer(run):
        timed.append(tuning.config_for(small("product"), GPU)[0])
        return 1.0

    monkeypatch.setattr(launch, "product_kernel", Compiled())
    (result,) = autotune([small("product")], CPU, GPU, timer)
    assert timed == [c for c in candidates(small("product"), GPU) if c.rows != first.rows]
    assert result.config in timed


@interpreted
def test_time_limit_and_each_bucket_once():
    from projunn_kernels.jit.autotune import autotune

    assert list(autotune([small("product")], CPU, GPU, lambda run: 1.0, seconds=-1)) == []
    twice = [small("product"), Problem("product", False, 1, 15, 16, 1)]
    assert len(list(autotune(twice, CPU, GPU, lambda run: 1.0))) == 1


@interpreted
def test_what_a_kernel_changes_is_restored(monkeypatch):
    from projunn_kernels.jit import autotune

    seen = []
    case = autotune._case

    def watched(problem, device):
        run, restore = case(problem, device)
        weight = run.__closure__
        cells = [c.cell_contents for c in weight if isinstance(c.cell_contents, torch.Tensor)]
        return run, lambda: (restore(), seen.append([c.clone() for c in cells]))

    monkeypatch.setattr(autotune, "_case", watched)
    list(autotune.autotune([small("rank_update")], CPU, GPU, lambda run: (run(), 1.0)[1]))
    assert len(seen) > 1
    for later in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], later, strict=True))


@interpreted
def test_progress_and_table(capsys):
    from projunn.tuning_display import show
    from projunn_kernels.jit.autotune import autotune

    assert show(autotune([small("product")], CPU, GPU, lambda run: 1.0), 2)
    printed = capsys.readouterr().out
    assert "product" in printed
    assert "1 of 2 buckets not tuned: out of time" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--op", "svd"], "op: got 'svd'"),
        (["--shapes", "64by64"], "shapes: got '64by64', wanted NxN or NxNxN"),
        (["--shapes", "64x64", "--rank", "9"], "rank: got 9"),
        (["--rank", "2"], "rank: needs --shapes"),
        (["--op", "fused_step", "--shapes", "1024x1024"], "shapes: no operation has these"),
    ],
)
def test_mistakes(arguments, words, capsys):
    assert main(["autotune", *arguments]) == 2
    assert words in capsys.readouterr().err


@without_gpu
@pytest.mark.requires("triton")
def test_without_a_gpu(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["autotune"]) == 2
    assert "autotune needs a GPU" in capsys.readouterr().err


@without_gpu
@pytest.mark.requires("triton")
def test_info_says_what_is_in_force(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "closed form: there is no GPU" in printed
    assert str(tables.cache_folder()) in printed
