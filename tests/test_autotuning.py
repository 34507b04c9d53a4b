"""``projunn autotune``: options, what is announced, shown and written, with a clock for a GPU."""

import importlib.metadata
import sys
from functools import cache

import pytest
import torch

import projunn
from projunn import autotuning, cli
from projunn.cli import main
from projunn_kernels import selfcheck
from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs import tables
from projunn_kernels.configs.closed_form import candidates, closed_form, standard_problems
from projunn_kernels.configs.problem import Device, Problem
from projunn_kernels.configs.tables import Entry, read_table, write_table

pytest.importorskip("triton")
interpreted = pytest.mark.interpreter_only  # a stand-in for a GPU
GPU = Device("Test GPU 9000", "9.0", 132, 232_448)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROJUNN_CACHE", str(tmp_path))
    monkeypatch.delenv("PROJUNN_TABLES", raising=False)
    monkeypatch.setattr(tuning, "shipped_folder", lambda: tmp_path / "none")
    tuning.forget()
    yield
    tuning.forget()


def file():
    return tables.cache_folder() / tables.table_name(GPU.name)


class StandInCompilers:
    def __init__(self, processes):
        self.processes = processes

    def __enter__(self):
        return self

    def __exit__(self, *told):
        pass

    def compile(self, wanted, *, until, done):
        return dict.fromkeys(wanted, "")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, as far as the command can see: the interpreter, and a clock that says 1 ms."""
    from projunn_kernels.tuning import compilers, timing

    timed = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(autotuning, "interpreting", lambda: False)
    monkeypatch.setattr(autotuning, "device_of", lambda device: GPU)
    monkeypatch.setattr(autotuning.torch, "device", lambda *told: CPU)
    monkeypatch.setattr(compilers, "Compilers", StandInCompilers)
    monkeypatch.setattr(timing, "cold_time", lambda run: timed.append(run) or 1.0)
    return timed


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--op", "svd"], "op: got 'svd'"),
        (["--shapes", "64by64"], "shapes: got '64by64', wanted NxN or NxNxN"),
        (["--shapes", "64x64", "--rank", "9"], "rank: got 9"),
        (["--op", ""], "op: got none, wanted at least one"),
        (["--rank", "2"], "rank: needs --shapes or --model"),
        (["--op", "fused_step", "--shapes", "1024x1024"], "shapes: no operation has these"),
        (["--model", "m:f", "--shapes", "64x64"], "shapes: cannot be combined with --model"),
        (["--model", "nowhere_to_be_found:f"], "model: cannot import 'nowhere_to_be_found'"),
        (["--batch", "4"], "batch: needs --model"),
        (["--length", "4"], "length: needs --model"),
        (["--standard"], "standard: needs --model"),
        (["--model", "m:f", "--batch", "0"], "batch: got 0, wanted a positive integer"),
        (["--processes", "-1"], "processes: got -1, wanted a positive integer"),
        (["--seconds", "0"], "seconds: got 0.0, wanted a positive number"),
        (["--seconds", "nan"], "seconds: got nan, wanted a positive number"),
    ],
)
def test_a_mistake_is_one_line_with_the_name_of_the_option(arguments, words, capsys):
    assert main(["autotune", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@interpreted
def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["autotune"]) == 2
    assert "autotune needs a GPU" in capsys.readouterr().err


@interpreted
@pytest.mark.parametrize("rich", [True, False])
def test_how_long_it_will_take_is_said_before_and_meanwhile(gpu, capsys, monkeypatch, rich):
    if not rich:
        for name in [one for one in sys.modules if one.partition(".")[0] == "rich"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "rich", None)
    options = ["--op", "product,rank_update", "--shapes", "16x16", "--dtype", "real", "--processes", "3"]
    assert main(["autotune", *options]) == 0
    out = capsys.readouterr().out
    problems = [Problem(name, False, 1, 16, 16, 1) for name in ("product", "rank_update")]
    count = sum(len(candidates(problem, GPU)) for problem in problems)
    assert len(gpu) == count
    assert out.startswith(f"2 buckets, {count} configurations, 3 processes that compile: about ")
    assert "a configuration beats the closed form in 0 buckets of 2, in 2 it stays" in out
    assert f"table: {file()}" in out
    if not rich:
        assert f"1 of 2  {problems[1].bucket}" in out or f"1 of 2  {problems[0].bucket}" in out
        assert " left\n" in out
    assert set(read_table(file()).entries) == {problem.bucket for problem in problems}


@interpreted
def test_a_time_limit_is_announced_and_kept(gpu, capsys):
    assert main(["autotune", "--seconds", "1e-9", "--op", "product"]) == 0
    out = capsys.readouterr().out
    assert ", and the limit is 0 s" in out
    assert "buckets not tuned: out of time" in out
    assert not file().exists()


@interpreted
def test_ctrl_c_keeps_what_is_done(gpu, capsys, monkeypatch):
    from projunn_kernels.tuning import timing

    problems = [Problem(name, False, 1, 16, 16, 1) for name in ("product", "rank_update")]
    left = [len(candidates(problems[0], GPU))]

    def clock(run):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(timing, "cold_time", clock)
    options = ["--op", "product,rank_update", "--shapes", "16x16", "--dtype", "real"]
    assert main(["autotune", *options]) == 130
    assert "1 of 2 buckets not tuned: interrupted" in capsys.readouterr().out
    assert set(read_table(file()).entries) == {problems[0].bucket}


@interpreted
def test_only_what_no_table_has_is_tuned_if_asked(gpu, capsys):
    options = ["--op", "product", "--shapes", "16x16,32x32", "--dtype", "real"]
    bucket = "product/real/k1/16x16/b1"
    write_table(GPU, {bucket: Entry(None, 1.0, 1.0, {})})
    assert main(["autotune", "--missing", *options]) == 0
    assert capsys.readouterr().out.startswith("1 buckets, ")
    assert set(read_table(file()).entries) == {bucket, "product/real/k1/32x32/b1"}


@interpreted
def test_a_model_is_tuned_for_and_the_standard_list_after_it(gpu, capsys, tmp_path, monkeypatch):
    (tmp_path / "model_to_tune.py").write_text(
        "import projunn\n\ndef make():\n    return projunn.nn.UnitaryLinear(16, 16)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with projunn.backend("interpret"):
        assert main(["autotune", "--model", "model_to_tune:make"]) == 0
        assert set(read_table(file()).entries) == {"fused_step/real/k1/16x16/b1"}
        assert main(["autotune", "--model", "model_to_tune:make", "--op", "product"]) == 2
        assert "runs none of the operations asked for" in capsys.readouterr().err
        standard = ["--standard", "--seconds", "1e-9"]
        assert main(["autotune", "--model", "model_to_tune:make", *standard]) == 0
    every = {"fused_step/real/k1/16x16/b1"} | {problem.bucket for problem in standard_problems()}
    assert capsys.readouterr().out.startswith(f"{len(every)} buckets, ")


@interpreted
def test_tables_that_are_off_are_written_and_not_used(gpu, capsys, monkeypatch):
    monkeypatch.setenv("PROJUNN_TABLES", "off")
    options = ["--op", "product", "--shapes", "16x16", "--dtype", "real"]
    assert main(["autotune", *options]) == 0
    assert "PROJUNN_TABLES=off: the table will be written, but not used" in capsys.readouterr().out
    problem = Problem("product", False, 1, 16, 16, 1)
    assert problem.bucket in read_table(file()).entries
    assert tuning.config_for(problem, GPU) == (closed_form(problem, GPU), "closed form")


@interpreted
def test_a_cache_that_cannot_be_written_is_said_before_anything_is_tuned(
    gpu, capsys, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PROJUNN_CACHE", str(tmp_path / "file" / "cache"))
    assert main(["autotune", "--op", "product", "--shapes", "16x16"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("projunn: PROJUNN_CACHE: the table is to be written into ")
    assert not said.out


# -- projunn info --------------------------------------------------------------------------------------


@interpreted
def test_info_names_each_table_and_why_it_is_not_used_without_a_gpu(capsys):
    write_table(GPU, {"product/real/k1/16x16/b1": Entry(None, 1.0, 1.0, {})})
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "closed form: there is no GPU" in printed
    assert str(tables.cache_folder()) in printed
    assert f"{file()}: not used: there is no GPU" in printed


@interpreted
def test_info_says_for_each_gpu_which_tables_are_used(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: GPU.name)
    monkeypatch.setattr(cli, "device_of", lambda device: GPU)
    write_table(GPU, {"product/real/k1/16x16/b1": Entry(None, 1.0, 1.0, {})})
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"{file()}: used, 1 buckets (triton ") == 1  # two of a kind are said once
    assert f"{GPU.name}: {file()} (1 buckets), then closed form" in printed
    monkeypatch.setenv("PROJUNN_TABLES", "off")
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert f"{tables.cache_folder()} (off)" in printed
    assert f"{file()}: not used: PROJUNN_TABLES=off" in printed


def test_info_refuses_an_unknown_setting(capsys, monkeypatch):
    monkeypatch.setenv("PROJUNN_TABLES", "no")
    assert main(["info"]) == 2
    assert "PROJUNN_TABLES: got 'no', wanted on or off" in capsys.readouterr().err


@interpreted
@pytest.mark.parametrize("home", [True, False], ids=["unreadable", "no home"])
def test_a_cache_that_cannot_be_read_is_as_none(tmp_path, capsys, monkeypatch, home):
    """In a container the home is often another user's, or nowhere: launches ended in an error."""

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    if home:  # a name so long is an OSError for whoever looks, and no permission is needed for it
        monkeypatch.setenv("PROJUNN_CACHE", str(tmp_path / ("x" * 300)))
    else:
        for name in ("PROJUNN_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("pathlib.Path.home", nowhere)
    monkeypatch.setattr(selfcheck, "_known", cache(selfcheck._known.__wrapped__))
    verdict = selfcheck.Verdict("product real", GPU.name, "3.8.0", "")
    assert tuning.found_tables(GPU) == []
    assert verdict not in selfcheck.verdicts()
    with pytest.warns(UserWarning, match="the verdict on a kernel cannot be kept: "):
        selfcheck._keep("a", verdict)
    assert main(["info"]) == 0
    assert home or "PROJUNN_CACHE: got none, and there is no home folder" in capsys.readouterr().out


@interpreted
def test_the_triton_of_amd_gpus_is_found_by_its_names(capsys, monkeypatch):
    """Else no table that was tuned there is in force, as if Triton were not installed."""
    usual, gone = importlib.metadata.version, importlib.metadata.PackageNotFoundError
    for name in ("triton-rocm", "pytorch-triton-rocm"):

        def version(package, name=name):
            if "triton" not in package:
                return usual(package)
            if package != name:
                raise gone(package)
            return "3.6.0"

        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", version)
            assert main(["info"]) == 0
        assert "3.6.0" in capsys.readouterr().out


def test_a_cache_that_is_no_text_has_no_verdicts(tmp_path):
    (tmp_path / "verdicts.jsonl").write_bytes(b"\xff\xfe{\n")
    assert selfcheck._read(tmp_path / "verdicts.jsonl") == {}
