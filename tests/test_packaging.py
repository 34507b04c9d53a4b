"""What is installed, and what importing it brings along."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import projunn

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
    (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
    said = zipfile.ZipFile(wheel).read(metadata).decode()
    assert f"\nVersion: {projunn.__version__}\n" in said
    assert "Project-URL: Paper, https://arxiv.org/abs/2203.05483" in said
    (scripts,) = (n for n in names if n.endswith("entry_points.txt"))
    assert b"projunn = projunn.cli:main" in zipfile.ZipFile(wheel).read(scripts)


def test_the_source_distribution_holds_what_tests_and_docs_need(tmp_path):
    pytest.importorskip("setuptools", "77", reason="building needs setuptools 77")
    tracked = ("projunn", "kernels", "tests", "docs", "examples", "bench", ".ci")
    left_out = shutil.ignore_patterns("__pycache__", "*.pyc", "results")
    for name in tracked:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix in (".md", ".toml", ".txt", ".cff", ".in", ".yml", ""):
            shutil.copy(path, tmp_path)
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    (path,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        file.relative_to(ROOT).as_posix()
        for name in tracked
        for file in (ROOT / name).rglob("*")
        if file.suffix in (".py", ".md", ".json", ".ipynb")
        and not {"__pycache__", "results"} & {*file.parts}
    }
    assert sources <= names
    wanted = {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "SECURITY.md",
        "Makefile",
        ".ci/run",
    }
    assert wanted <= names
    assert not [name for name in names if name.endswith((".whl", ".pyc", ".pt"))]


def test_one_version_is_said_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    assert projunn.__version__ == version
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in citation
    (released,) = re.findall(r'^date-released: "(.*)"$', citation, re.MULTILINE)
    assert f"## {version} ({released})" in (ROOT / "CHANGELOG.md").read_text()
    # The Pythons of the package and of make are the same; the workflow tries newer ones too.
    named = {c.rsplit(" ", 1)[1] for c in project["classifiers"] if "Python :: 3." in c}
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    (matrix,) = re.findall(r"^        python: \[(.*)\]$", workflow, re.MULTILINE)
    assert {word.strip('" ') for word in matrix.split(",")} >= named
    assert "- run: .ci/run\n" in workflow
    first, last = min(named, key=_minor), max(named, key=_minor)
    assert project["requires-python"] == f">={first}"
    for name in ("Makefile", "README.md", "CONTRIBUTING.md"):
        assert f"Python {first} to {last}" in (ROOT / name).read_text(), name


def _minor(version):
    return int(version.split(".")[1])


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
