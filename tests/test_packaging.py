"""What is installed, and what importing it brings along."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    tracked = ("projunn", "kernels", "pyproject.toml", "README.md", "LICENSE")
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in tracked), source], check=True)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    subprocess.run(command, check=True, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_every_module_and_no_kernels_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {n.split("/")[0] for n in names if ".dist-info/" not in n}
    assert packages == {"projunn", "projunn_kernels"}
    roots = {"projunn": ROOT, "projunn_kernels": ROOT / "kernels"}
    sources = {
        path.relative_to(root).as_posix()
        for package, root in roots.items()
        for path in (root / package).rglob("*.py")
    }
    assert {n for n in names if n.endswith(".py")} == sources
    assert "projunn/py.typed" in names
    assert any(n.endswith("LICENSE") for n in names)


def test_wheel_works_on_its_own(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import projunn, projunn_kernels, torch
assert projunn.__file__.startswith({str(tmp_path)!r}), projunn.__file__
assert projunn_kernels.__file__.startswith({str(tmp_path)!r}), projunn_kernels.__file__
projunn.retract(torch.eye(3), torch.ones(3, 1), torch.ones(3, 1))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_import_needs_torch_and_einops_only(tmp_path):
    code = """
import sys
for name in ("triton", "matplotlib", "rich", "sklearn", "scipy"):
    sys.modules[name] = None  # importing it raises
import projunn, projunn.nn, projunn.optim, projunn_kernels, projunn.cli
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_the_kernels_import_nothing_of_the_library(tmp_path):
    code = """
import importlib, pkgutil, sys
sys.modules["projunn"] = None  # importing it raises
import projunn_kernels
for module in pkgutil.walk_packages(projunn_kernels.__path__, "projunn_kernels."):
    importlib.import_module(module.name)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_there_is_no_symbolic_link():
    listed = subprocess.run(["git", "ls-files", "-s"], capture_output=True, text=True, cwd=ROOT)
    assert not [line for line in listed.stdout.splitlines() if line.startswith("120000")]
