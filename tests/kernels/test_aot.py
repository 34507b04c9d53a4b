"""Kernels compiled ahead of time for real GPUs: a handful; ``make aot`` does them all.

In a process of its own, since this one's kernels are the interpreter's.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from projunn_kernels.tuning import aot

pytestmark = pytest.mark.requires("triton")


# Prints the spilled bytes of a step of rank 1 of real n x n matrices, for each "n,architecture".
SPILLED = """
import sys
from projunn_kernels.configs.problem import Problem
from projunn_kernels.tuning.aot import binaries
from projunn_kernels.tuning.binaries import compiled

for size, architecture in (argument.split(",") for argument in sys.argv[1:]):
    problem = Problem("fused_step", False, 1, int(size), int(size), 64)
    launched = [(problem, {"retraction": "exp", "scaled": False, "active": False, "gradient": None})]
    for binary in binaries((architecture,), launched):
        print(compiled(binary)["spilled"])
"""


# Prints, for both directions of a time loop whose launches overlap, the spilled bytes, and whether a
# program waits for the launch before ahead of all that it reads, and lets the next one begin.
OVERLAPPING = """
import torch, triton
from projunn_kernels.configs.closed_form import candidates
from projunn_kernels.configs.problem import Problem
from projunn_kernels.tuning.aot_problems import launches_of
from projunn_kernels.tuning.binaries import ARCHITECTURES, binary, compiled, source_and_target

for operation in ("recurrence", "recurrence_backward"):
    problem = Problem(operation, False, 2, 128, 512, 1)
    config = next(c for c in candidates(problem, ARCHITECTURES["sm_90"]) if c.overlap)
    variant = {"nonlinearity": "relu", "dtype": torch.float32, "precision": "high", "resets": False}
    what = binary(*launches_of(problem, config, **variant)[0], "sm_90", "")
    source, target = source_and_target(what)
    code = triton.compile(source, target=target, options=dict(what.options))
    before, waits, after = code.asm["ptx"].partition("griddepcontrol.wait")
    early = "ld.global" in before or "st.global" in before or "cp.async" in before
    sound = waits and not early and "griddepcontrol.launch_dependents" in after
    print("found", compiled(what)["spilled"], bool(sound), code.metadata.launch_pdl)
"""


# Prints, for both directions of the time loop of a row, complex and real, how many numbers a time step
# loads, and how many of them it hands on to other threads, for which it would wait until they are there.
WAITING = """
import re, torch, triton
from projunn_kernels.configs.closed_form import closed_form
from projunn_kernels.configs.problem import Problem
from projunn_kernels.tuning.aot_problems import launches_of
from projunn_kernels.tuning.binaries import ARCHITECTURES, binary, source_and_target

for operation in ("recurrence", "recurrence_backward"):
    for n, pairs in ((128, True), (64, True), (190, False), (190, True)):
        problem = Problem(operation, pairs, 1, 128, n, 1)
        config = closed_form(problem, ARCHITECTURES["sm_90"])
        variant = {"nonlinearity": "tanh", "dtype": torch.float32, "precision": "highest"}
        launched = launches_of(problem, config, **variant, resets=False)[0]
        what = binary(*launched, "sm_90", "")
        source, target = source_and_target(what)
        ptx = triton.compile(source, target=target, options=dict(what.options)).asm["ptx"]
        lines = ptx.splitlines()
        places = {line.split(":")[0]: i for i, line in enumerate(lines) if line.startswith("$L")}
        jumps = [(re.search(r"bra.*?([$]L\\w+)", l), i) for i, l in enumerate(lines)]
        loops = [(places[to[1]], i) for to, i in jumps if to]
        begin, end = max(loops, key=lambda loop: loop[1] - loop[0])
        loop = lines[begin:end]
        loads = [re.findall(r"%r\\d+", l.split("[")[0]) for l in loop if "ld.global" in l]
        loaded = {register for registers in loads for register in registers}
        handed = [l for l in loop if "st.shared" in l and loaded & set(re.findall(r"%r\\d+", l))]
        print("found", len(loads), len(handed))
"""


def python(*arguments):
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean, check=False)


def run(*arguments):
    return python("-m", "projunn_kernels.tuning.aot", *arguments)


def test_a_few_kernels_compile_without_a_spill(tmp_path):
    """Each kernel is in it: what the interpreter forgives, the compiler does not."""
    out = tmp_path / "rows.jsonl"
    result = run("--tiny", "--arch", "sm_90", "--processes", "1", "--out", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    kernels = {row["kernel"].removesuffix("_kernel") for row in rows}
    assert kernels >= {
        "plane_step", "adjoint_product", "product", "unit", "gram", "orthonormal",
        "plane_basis", "basis", "rotate_rows", "rank_update", "warm_basis",
        "sound", "rule", "residual", "correct",
        "recurrence", "recurrence_backward",
        "plane_transform", "plane_inverse",
    }  # fmt: skip
    assert all(row["spilled"] == 0 and row["registers"] > 0 for row in rows)
    for kernel in ("rotate_rows_kernel", "product_kernel"):  # by 128 bits, where rows are aligned
        assert max(row["wide"] for row in rows if row["kernel"] == kernel) > 0.9

    # What holds is not compiled again; what failed, or belongs to other code, is.
    lost = [rows[0] | {"key": "other code"}, rows[1] | {"fails": "spills 8 bytes"}, *rows[2:]]
    out.write_text("".join(json.dumps(row) + "\n" for row in lost))
    table = tmp_path / "table.md"
    kept = "--out", str(out), "--table", str(table)
    result = run("--tiny", "--arch", "sm_90", "--processes", "2", *kept)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(rows)} binaries, {len(rows) - 2} of them known" in result.stdout
    again = [json.loads(line) for line in out.read_text().splitlines()]
    names = [{(r["kernel"], r["architecture"], r["problem"]) for r in some} for some in (again, rows)]
    assert names[0] == names[1]
    assert f"{len(rows)} binaries, 0 failed" in table.read_text()


def test_every_fifth_of_them_compiles_for_an_amd_gpu(tmp_path):
    """``make aot`` compiles them all."""
    if tuple(map(int, version("triton").split(".")[:2])) < (3, 8):
        pytest.skip("Triton 3.6 does not translate products of float64 tiles for AMD GPUs (docs/gpu.md)")
    out = tmp_path / "rows.jsonl"
    result = run("--tiny", "--arch", "gfx942", "--every", "5", "--processes", "1", "--out", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) > 5
    assert all(row["spilled"] == 0 and row["registers"] > 0 for row in rows)


def test_rows_that_are_not_aligned_spill_nothing_in_the_fused_step():
    """Such rows take an address for each number; with two panels of rows these are carried by loops."""
    result = python("-c", SPILLED, "33,sm_90", "100,sm_120")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["0", "0"]


def test_launches_that_overlap_wait_before_they_read():
    result = python("-c", OVERLAPPING)
    assert result.returncode == 0, result.stderr
    found = [line for line in result.stdout.splitlines() if line.startswith("found")]
    assert found == ["found 0 True True"] * 2


def test_the_interpreter_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["aot", "--tiny"])
    assert aot.main() == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err


def test_a_name_of_no_kernel_is_refused(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(sys, "argv", ["aot", "--op", "rotate_row_"])
    with pytest.raises(SystemExit):
        aot.main()
    assert "op: got 'rotate_row_', wanted a part of one of adjoint_many," in capsys.readouterr().err


def test_a_time_step_does_not_wait_for_what_the_next_one_reads():
    result = python("-c", WAITING)
    assert result.returncode == 0, result.stderr
    found = [line.split() for line in result.stdout.splitlines() if line.startswith("found")]
    assert len(found) == 8
    for _, loaded, handed in found:
        assert int(loaded) > 0
        assert int(handed) == 0
