"""``make gpu`` where there is no GPU: every stage of it at tiny sizes, in a process of its own."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.requires("triton"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="make gpu itself runs here"),
]


def run(*arguments):
    clean = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PROJUNN_BACKEND")}
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean, check=False)


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_stage_runs(tmp_path):
    result = run("--dry", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    for stage in ("checks", "autotune", "bench"):
        assert f"== {stage}: ok" in result.stdout
    checks = rows(tmp_path / "checks.jsonl")
    assert f"{len(checks)} of {len(checks)} checks run, 0 failed" in result.stdout
    kinds = {row["check"].split()[0] for row in checks}
    assert kinds == {
        "plain", "bad", "graph", "compile", "time", "spectral", "sketch", "retract", "factor",
        "rank_update",
    }  # fmt: skip
    assert json.loads((tmp_path / "dry-run.json").read_text())["entries"]
    timed = {row["what"] for row in rows(tmp_path / "gpu.jsonl")}
    assert timed >= {
        "UnitaryRNN", "UnitaryRNN, one CUDA graph", "published loop", "cuDNN nn.RNN",
        "copy", "projunn", "projunn on torch", "unconstrained SGD",
    }  # fmt: skip
    assert {row["what"] for row in rows(tmp_path / "gpu_conv.jsonl")} == {
        "UnitaryConv2d",
        "nn.Conv2d 3x3",
    }
    assert {(row["what"], row["graph"]) for row in rows(tmp_path / "gpu_linear.jsonl")} == {
        (what, graph)
        for what in ("nn.Linear + SGD", "UnitaryLinear sketched", "UnitaryLinear")
        for graph in (False, True)
    }
    assert all(row["quick"] for row in rows(tmp_path / "gpu.jsonl"))
    assert "== bench: ok" in (tmp_path / "log.txt").read_text()


def test_without_a_gpu_it_says_so(tmp_path):
    result = run("--out", str(tmp_path))
    assert (result.returncode, result.stderr) == (2, "make gpu: PyTorch sees no GPU\n")
