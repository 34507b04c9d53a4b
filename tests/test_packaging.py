"""What is installed, and what importing it brings along."""

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
    assert packages == {"projunn"}
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "projunn").rglob("*.py")
        if "kernels" not in path.parts
    }
    sources |= {f"projunn/{path.relative_to(ROOT)}" for path in (ROOT / "kernels").rglob("*.py")}
    assert {n for n in names if n.endswith(".py")} == sources
    assert "projunn/py.typed" in names
    assert any(n.endswith("LICENSE") for n in names)


def test_wheel_works_on_its_own(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import projunn, projunn.kernels, torch
assert projunn.__file__.startswith({str(tmp_path)!r}), projunn.__file__
assert projunn.kernels.__file__.startswith({str(tmp_path)!r}), projunn.kernels.__file__
projunn.retract(torch.eye(3), torch.ones(3, 1), torch.ones(3, 1))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_import_needs_torch_only(tmp_path):
    code = """
import sys
for name in ("triton", "matplotlib", "rich", "sklearn", "scipy"):
    sys.modules[name] = None  # importing it raises
import projunn, projunn.nn, projunn.optim, projunn.kernels, projunn.cli
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_checkout_is_importable_where_it_lies():
    code = "import projunn.kernels; projunn.kernels.rotation"
    subprocess.run([sys.executable, "-S", "-c", "import sys"], check=True)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
