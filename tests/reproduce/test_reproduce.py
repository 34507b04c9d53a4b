"""The experiments of the paper: all of them run, go on where they stopped, and say what they were."""

import json
from pathlib import Path

import pytest

from projunn.cli import main
from projunn.reproduce.recipe import SCALES
from projunn.reproduce.recipes import RECIPES
from projunn.tasks import TASKS

pytestmark = pytest.mark.requires("rich", "matplotlib", "filelock", "sklearn")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", RECIPES)
def test_every_experiment_runs_dry(name, scale, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", name, "--dry", "--scale", scale]) == 0
    printed = capsys.readouterr().out
    for training in RECIPES[name].trainings:
        assert training.label in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.draws
@pytest.mark.parametrize("name", ["adding", "resnet9", "gradients", "runtime"])
def test_every_kind_of_picture_is_drawn(name, monkeypatch):
    """Of trainings and of measurements, in files that a dry run removes."""
    from matplotlib.figure import Figure

    sizes, save = [], Figure.savefig

    def saved(figure, file, **how):
        save(figure, file, **how)
        sizes.append(Path(file).stat().st_size)

    monkeypatch.setattr(Figure, "savefig", saved)
    assert main(["reproduce", name, "--dry", "--scale", "cpu"]) == 0
    assert min(sizes) > 1000


@pytest.mark.parametrize("name", RECIPES)
def test_the_scales_differ_in_size_and_not_in_method(name):
    """The smaller scale has the same task, rank, retraction and factorization, and fewer steps."""
    for training in RECIPES[name].trainings:
        paper, small = (training.config(scale, seed=0, device="cpu") for scale in SCALES)
        for option in ("task", "rank", "retraction", "factorization", "optimizer", "seed"):
            assert getattr(paper, option) == getattr(small, option)
        assert small.steps <= paper.steps


@pytest.mark.parametrize("name", ["adding", "copying", "pixels", "permuted"])
def test_unitary_rates_are_the_published_ones(name):
    """1/32 of lr, whatever the optimizer's default is; at the smaller scale some are chosen for it."""
    for training in RECIPES[name].trainings:
        paper, small = (training.config(scale, seed=0, device="cpu") for scale in SCALES)
        assert paper.unitary_lr == paper.lr / 32
        assert small.unitary_lr == training.cpu.get("unitary_lr", small.lr / 32)


def test_images_are_those_that_the_user_names():
    training = RECIPES["permuted"].trainings[0]
    config = training.config("paper", seed=0, device="cpu", data="digits.npz")
    assert (config.data, config.hidden, config.permuted) == ("digits.npz", 116, True)
    copying = RECIPES["copying"].trainings[0].config("paper", seed=0, device="cpu", data="digits.npz")
    assert copying.data is None


def test_an_experiment_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    from projunn.reproduce import recipe

    monkeypatch.setattr(recipe, "_DRY", {**recipe._DRY, "steps": 3})
    folder = tmp_path / "r"
    arguments = ["reproduce", "copying", "--scale", "cpu", "--out", str(folder)]

    def config(self, scale, **given):
        return original(self, scale, **{**given, "dry": True})

    original = recipe.Training.config
    monkeypatch.setattr(recipe.Training, "config", config)
    assert main([*arguments, "--only", "T-1000"]) == 0
    first = (folder / "T-1000" / "checkpoint.pt").stat().st_ino
    metrics = (folder / "T-1000" / "metrics.jsonl").read_text()
    assert main(arguments) == 0
    assert (folder / "T-1000" / "metrics.jsonl").read_text() == metrics
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [row["training"] for row in rows] == ["T-1000", "T-2000"]
    assert {row["step"] for row in rows} == {3}
    assert all(row["scale"] == "cpu" and row["torch"] for row in rows)
    assert first
    capsys.readouterr()
    assert main([*arguments, "--seed", "1"]) == 2
    assert "holds a run with other options" in capsys.readouterr().err


def test_experiments_are_listed(capsys):
    assert main(["reproduce"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert {t.task for recipe in RECIPES.values() for t in recipe.trainings} == set(TASKS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "name: got 'nothing', wanted one of unitary, adding"),
        (["adding", "--only", "T-9", "--dry"], "only: got 'T-9', wanted some of T-200, T-750"),
        (["runtime", "--only", "a", "--dry"], "only: the experiment is one measurement"),
        (["runtime", "--data", "a", "--dry"], "data: the experiment reads no images; wanted none"),
        (["unitary", "--data", "a", "--dry"], "data: the experiment reads no images; wanted none"),
        (["adding", "--device", "toaster", "--scale", "cpu"], "device: 'toaster' is not available"),
        (["pixels", "--data", "nowhere.npz", "--scale", "cpu"], "data: nowhere.npz is no .npz"),
    ],
)
def test_mistakes_are_said_in_a_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_an_unknown_training_is_refused_before_others_train(capsys):
    assert main(["reproduce", "adding", "--scale", "cpu", "--only", "T-200,T-9", "--dry"]) == 2
    captured = capsys.readouterr()
    assert "only: got 'T-9', wanted some of T-200, T-750" in captured.err
    assert "T-200:" not in captured.out
