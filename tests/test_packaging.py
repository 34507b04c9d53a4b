"""What is installed, and what importing it brings along."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code, folder, *paths):
    """Python code in a folder, where only these paths, the standard library and packages are seen."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built offline by the setuptools that is installed."""
    found = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
    if "pip" not in found or int(found.get("setuptools", "0").split(".")[0]) < 77:
        names = {name: found.get(name, "none") for name in ("pip", "setuptools")}
        pytest.skip(f"building needs pip and setuptools 77, found {names}")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("projunn", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
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
import projunn, projunn_kernels, torch
assert projunn.__file__.startswith({str(tmp_path)!r}), projunn.__file__
assert projunn_kernels.__file__.startswith({str(tmp_path)!r}), projunn_kernels.__file__
projunn.retract(torch.eye(3), torch.ones(3, 1), torch.ones(3, 1))
"""
    run(code, tmp_path, tmp_path)


def test_import_needs_torch_and_einops_only(tmp_path):
    code = """
import sys
for name in ("triton", "matplotlib", "rich", "sklearn", "scipy"):
    sys.modules[name] = None  # importing it raises
import projunn, projunn.nn, projunn.optim, projunn_kernels, projunn.cli
"""
    run(code, tmp_path, ROOT, ROOT / "kernels")


def test_the_kernels_import_nothing_of_the_library(tmp_path):
    code = """
import importlib, pkgutil, sys
sys.modules["projunn"] = None  # importing it raises
import projunn_kernels
for module in pkgutil.walk_packages(projunn_kernels.__path__, "projunn_kernels."):
    importlib.import_module(module.name)
"""
    run(code, tmp_path, ROOT / "kernels")


def test_there_is_no_symbolic_link():
    for folder in ("projunn", "kernels", "tests", "bench"):
        assert not [path for path in (ROOT / folder).rglob("*") if path.is_symlink()]
