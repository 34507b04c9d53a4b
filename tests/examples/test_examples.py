"""The scripts and the notebook of examples/, run in a small form: they say what they claim."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch):
    """Runs a script as Python does, with some options, and returns what its ``main`` does."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def main(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        monkeypatch.delitem(sys.modules, name, raising=False)
        torch.manual_seed(0)
        return importlib.import_module(name).main()

    return main


def test_long_memory(run, capsys):
    losses = run("long_memory", "--delay", 10, "--hidden", 64, "--steps", 80)
    assert losses["unitary"] < losses["naive"] < losses["lstm"]
    said = capsys.readouterr().out
    assert f"{losses['unitary']:.4f}" in said
    assert f"{losses['lstm']:.4f}" in said


def test_convert_model(run, capsys):
    found = run("convert_model", "--size", 32, "--steps", 40)
    assert found["change"] < 3e-6
    assert found["after"] < found["before"]
    assert "0.bias, 0.weight, 2.bias, 2.weight" in capsys.readouterr().out


@pytest.mark.requires("sklearn")
def test_certified_classifier(run):
    found = run("certified_classifier", "--width", 8, "--epochs", 1)
    assert found["bound"] < 1.0001
    assert found["certified 0.0"] > 0.2
    for radius in (0.0, 0.1, 0.25, 0.5):
        assert found[f"certified {radius}"] < found[f"attacked {radius}"] + 1e-6


@pytest.mark.requires("matplotlib")
def test_the_notebook(monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    notebook = json.loads((FOLDER / "ranks.ipynb").read_text())
    names = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace("steps=600", "steps=60")
            exec(compile(source, "ranks.ipynb", "exec"), names)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:3]] == ["rank  1", "rank  4", "rank 16"]
    assert all(float(line.rsplit(" ", 1)[1]) < 1e-5 for line in said[:3])
    errors = {rank: errors[-1] for rank, (errors, *_) in names["runs"].items()}
    assert errors[16] < errors[4] < errors[1]


def test_every_example_is_in_the_list():
    listed = (FOLDER / "README.md").read_text()
    for path in [*FOLDER.glob("*.py"), *FOLDER.glob("*.ipynb")]:
        if path.suffix == ".ipynb" or "def main(" in path.read_text():
            assert f"[{path.name}]({path.name})" in listed
