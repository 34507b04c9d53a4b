"""``python -m bench.micro``: every micro benchmark runs, and runs are saved and compared."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.requires("pytest_benchmark")


SHORT = ("-k", "rank_one and lsi", "--benchmark-max-time=0.01", "--benchmark-min-rounds=1")
CALLS = [("disabled", "--benchmark-disable", "--color=no"), ("saved", *SHORT), ("saved", *SHORT)]


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """What each of `CALLS` printed, and the folder in which theirs keep what they save."""
    folder = tmp_path_factory.mktemp("micro")
    # One process for the calls: most of their time is the import of PyTorch.
    code = f"""
import sys
from pathlib import Path
from bench.micro import __main__ as micro
for storage, *arguments in {CALLS!r}:
    micro.STORAGE = Path({str(folder)!r}) / storage
    micro.STORAGE.mkdir(exist_ok=True)
    sys.argv[1:] = arguments
    status = micro.main()
    if status:
        sys.exit(status)
    print("== end of a call")
"""
    inherited = ("TRITON_INTERPRET", "PROJUNN_BACKEND", "PYTEST_ADDOPTS")
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in inherited and not name.startswith("PYTEST_XDIST")
    }
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    *outputs, rest = result.stdout.split("== end of a call\n")
    assert rest == ""
    return outputs, folder


def test_every_micro_benchmark_runs_once(called):
    (output, *_), folder = called
    for name in ("update", "factorize", "layers"):
        assert f"test_{name}.py" in output
    assert "failed" not in output
    assert not list((folder / "disabled").iterdir())  # nothing was measured, so nothing is saved


def test_a_run_is_saved_and_compared_with_the_one_before(called):
    (_, first, second), folder = called
    assert "rank_one[lsi]" in first
    assert "NOW" not in first
    assert "rank_one[lsi] (0001)" in second
    assert "rank_one[lsi] (NOW)" in second
    assert len(list((folder / "saved").glob("*/*.json"))) == 2
