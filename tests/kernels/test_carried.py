"""The compiled loops of the kernels carry what Python carries.

In processes of their own: this one's kernels are the interpreter's, which runs Python.
"""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from projunn_kernels.tuning.binaries import Binary, with_sizes_of_one
from projunn_kernels.tuning.carried import live_names

triton_is_there = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
FORGETFUL = Path(__file__).with_name("forgetful.py")


def run(*command):
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(Path(__file__).parents[2] / "kernels"), clean.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=clean | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        check=False,
    )


@triton_is_there
def test_no_loop_of_any_kernel_forgets_a_name():
    from projunn_kernels.triton_kernels import kernels

    result = run("-m", "projunn_kernels.tuning.aot", "--carried")
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.search(r"(\d+) kernels, (\d+) variants, 0 forgotten", result.stdout)
    assert int(found[1]) == len(kernels())
    assert int(found[2]) > 100


def test_each_kernel_is_also_checked_for_sizes_of_one():
    """A batch of one did not compile: Triton makes a constant of it, which has no ``.to``."""
    usual = (("x", "*fp32"), ("batch", "i32"), ("rate", "fp32"), ("BN", "constexpr"))
    made = with_sizes_of_one(Binary("k", usual, (("BN", 64),), ("x", "batch"), (), "sm_90"))
    assert made.signature == (*usual[:1], ("batch", "constexpr"), *usual[2:])
    assert dict(made.constants) == {"BN": 64, "batch": 1}
    assert made.aligned == ("x",)


@triton_is_there
def test_every_loop_that_forgets_a_name_is_found_and_no_other():
    result = run(str(FORGETFUL))
    assert result.returncode == 0, result.stderr
    found = re.findall(r"^\w+: (\S+):(\d+): the loop forgets '(\w+)'$", result.stdout, re.MULTILINE)
    wanted = {
        (str(FORGETFUL), str(number), said[1])
        for number, line in enumerate(FORGETFUL.read_text().splitlines(), 1)
        if (said := re.search(r"# forgets (\w+)$", line))
    }
    assert set(found) == wanted, result.stdout
    assert result.stdout.count("\n") == len(found)
    assert len(wanted) == 9
    assert "is_the_old_backward_time_loop: " in result.stdout


def test_a_name_is_live_where_python_may_still_read_it():
    source = """
def kernel(a, b, n):
    x, y, z = a, a, a
    for t in range(n):
        y = x          # x comes from the turn before, y does not
        if n:
            z = y      # so z may come from it
        b += z
        x: int = t
    return z
"""
    function = ast.parse(source).body[0]
    loop = function.body[1]
    live = live_names(function)[id(loop)]
    assert live.at_head == {"x", "z", "b", "n"}
    assert live.after == {"z"}
