"""``python -m bench.micro``: every micro benchmark runs, and runs are saved and compared."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.requires("pytest_benchmark")


def run(storage, *arguments):
    """The command in a process of its own, with another folder for what it saves."""
    code = f"""
import sys
from pathlib import Path
from bench.micro import __main__ as micro
micro.STORAGE = Path({str(storage)!r})
sys.exit(micro.main())
"""
    inherited = ("TRITON_INTERPRET", "PROJUNN_BACKEND", "PYTEST_ADDOPTS")
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in inherited and not name.startswith("PYTEST_XDIST")
    }
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_micro_benchmark_runs_once(tmp_path):
    output = run(tmp_path, "--benchmark-disable", "--color=no")
    for name in ("update", "factorize", "layers"):
        assert f"test_{name}.py" in output
    assert "failed" not in output
    assert not list(tmp_path.iterdir())  # nothing was measured, so nothing is saved


def test_a_run_is_saved_and_compared_with_the_one_before(tmp_path):
    short = ("-k", "rank_one and lsi", "--benchmark-max-time=0.01", "--benchmark-min-rounds=1")
    first = run(tmp_path, *short)
    assert "rank_one[lsi]" in first
    assert "NOW" not in first
    second = run(tmp_path, *short)
    assert "rank_one[lsi] (0001)" in second
    assert "rank_one[lsi] (NOW)" in second
    assert len(list(tmp_path.glob("*/*.json"))) == 2
