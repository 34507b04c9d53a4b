"""``make gpu`` where there is no GPU: all of it at tiny sizes, in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu.__main__ import main

pytestmark = [
    pytest.mark.requires("triton"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="make gpu itself runs here"),
]


def run(*arguments):
    out_of_place = ("TRITON_INTERPRET", "PROJUNN_BACKEND", "PUBLISHED", "OUT")
    clean = {k: v for k, v in os.environ.items() if k not in out_of_place}
    root = Path(__file__).parents[2]
    clean["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "kernels")])
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean, check=False)


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_dry_run_goes_through_every_stage(tmp_path):
    result = run("--dry", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + (tmp_path / "log.txt").read_text()

    page = (tmp_path / "summary.txt").read_text()
    assert result.stdout.endswith(page + "\n")
    assert len(page.splitlines()) <= 60
    assert len(page) <= 12_000
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "checks.jsonl", "dry-run.json", "gpu_checks.json", "log.txt", "profile.txt", "rows.jsonl",
        "summary.txt",
    ]  # fmt: skip

    checked = rows(tmp_path / "checks.jsonl")
    assert not [row for row in checked if row["problem"]]
    assert {row["stage"] for row in checked} == {"tests", "checks"}
    families = {row["kind"].split()[0] for row in checked if row["stage"] == "checks"}
    assert families == {
        "step,", "step", "time", "spectral", "sketch", "retract", "factor", "rank_update", "kernel",
    }  # fmt: skip

    found = rows(tmp_path / "rows.jsonl")
    assert not [row for row in found if row.get("problem")]
    assert {row["stage"] for row in found} == {
        "run", "machine", "tune", "update", "host", "linear", "recurrence", "convolution", "training",
        "profile", "targets",
    }  # fmt: skip
    outcomes = {row["name"]: row["outcome"] for row in found if row["stage"] == "run"}
    assert not [outcome for outcome in outcomes.values() if "FAILED" in outcome or "left out" in outcome]
    timed = {row["name"] for row in found if "ms" in row or "issue_us" in row}
    assert timed >= {
        "SGD k1 1024x1024 float32, captured",
        "torch.optim.SGD 544x64x64 float32, captured",
        "AdamW k1 1024x1024 float32, captured",
        "SGD k1 on PyTorch 1024x1024 float32, eager",
        "SGD 1024, issue",
        "nn.Linear + SGD 1024, 512 rows, highest, graph",
        "UnitaryLinear sketched 1024, 512 rows, highest, eager",
        "cuDNN nn.RNN 190 relu, highest, graph",
        "UnitaryRNN 190 complex modrelu, high, graph",
        "published loop 190 relu, high, eager",
        "UnitaryConv2d 64 to 64 at 32, highest, captured",
        "UnitaryConv2d on PyTorch 64 to 64 at 32, highest, captured",
        "ResNet9 unitary, highest, eager",
        "spectral product 64 at 32, highest",
    }
    missing = {row["absent"] for row in found if "absent" in row}
    assert "the published code: PUBLISHED is not set" in missing
    verdicts = {row["verdict"].split(":")[0] for row in found if row["stage"] == "targets"}
    assert verdicts == {"met", "missed", "not run"}
    assert "## UnitaryConv2d 64 to 64 at 32, profile" in (tmp_path / "profile.txt").read_text()
    assert json.loads((tmp_path / "dry-run.json").read_text())["entries"]


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--out", str(tmp_path)])
    assert main() == 2
    assert capsys.readouterr().err.endswith("make gpu: PyTorch sees no GPU\n")
