"""Fingerprints of kernels: they change with what a kernel does, and with nothing else."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SOURCE = '''
import triton
import triton.language as tl

SHIFT = tl.constexpr(3)
SCALE: tl.constexpr = 2.5


@triton.jit
def deepest(x):
    return x + SHIFT


@triton.jit
def device_function(x):
    """What it does."""
    return deepest(x) * 2  # twice


@triton.jit
def some_kernel(
    source,
    n,
    BLOCK: tl.constexpr,
):
    """A kernel."""
    at = tl.arange(0, BLOCK)
    if n > 0:
        tl.store(source + at, device_function(tl.load(source + at)) * SCALE)
    tl.store(source, 0)
'''


def of(folder, source, name="some_kernel"):
    from projunn_kernels.configs.fingerprints import fingerprint

    folder.mkdir(exist_ok=True)
    file = folder / f"kernels_{len(list(folder.iterdir()))}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return fingerprint(getattr(module, name))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# twice", "# two times"),
        ('"""What it does."""\n    return', "return"),
        ('"""A kernel."""', '"""Another\n\n    word.\n    """'),
        ("    source,\n    n,\n    BLOCK: tl.constexpr,\n", "source, n, BLOCK: tl.constexpr"),
        ("\n\nSHIFT", "\n\n\n\nUNUSED = 5\n\nSHIFT"),
        ("    at = ", "\n    at = "),
    ],
)
def test_comments_layout_and_place_do_not_count(tmp_path, old, new):
    assert SOURCE.count(old) == 1
    assert of(tmp_path, SOURCE.replace(old, new)) == of(tmp_path, SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("source + at, device", "source + at + 1, device"),
        ("deepest(x) * 2", "deepest(x) * 3"),
        ("return x + SHIFT", "return x - SHIFT"),
        ("constexpr(3)", "constexpr(4)"),
        ("SCALE: tl.constexpr = 2.5", "SCALE: tl.constexpr = 2.25"),
        ("    tl.store(source, 0)", "        tl.store(source, 0)"),
        ("def some_kernel(\n    source,\n    n,", "def some_kernel(\n    n,\n    source,"),
        ("@triton.jit\ndef deepest", "@triton.jit(noinline=True)\ndef deepest"),
    ],
)
def test_code_device_functions_and_constants_count(tmp_path, old, new):
    assert SOURCE.count(old) == 1
    assert of(tmp_path, SOURCE.replace(old, new)) != of(tmp_path, SOURCE)


def test_functions_of_one_name_in_two_modules_both_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    begin, function = "import triton\n", "@triton.jit\ndef {}(x):\n    return {}\n"
    found = []
    for number in (1, 2):
        (tmp_path / f"inner_{number}.py").write_text(begin + function.format("same", f"x + {number}"))
        other = f"from inner_{number} import same as other\n"
        functions = function.format("same", "other(x)") + function.format("some_kernel", "same(x)")
        found.append(of(tmp_path / "all", begin + other + functions))
    assert found[0] != found[1]


def test_they_are_the_same_in_the_interpreter_and_for_the_compiler():
    program = (
        "import json; from projunn_kernels.configs.fingerprints import fingerprints;"
        "print(json.dumps(fingerprints()))"
    )
    found = []
    for interpret in ("0", "1"):
        path = os.pathsep.join(one for one in sys.path if one)
        environment = os.environ | {"TRITON_INTERPRET": interpret, "PYTHONPATH": path}
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(result.stdout))
    assert found[0] == found[1]
    assert len(set(found[0].values())) == len(found[0]) > 10
