"""The command line: what it prints, and how it says no."""

import sys

import pytest

from projunn.cli import main
from projunn.training.config import OPTIMIZERS

QUICK = ["--hidden", "8", "--length", "10", "--batch-size", "4", "--log-every", "5", "--device", "cpu"]
trains = pytest.mark.requires("rich", "matplotlib")


@trains
def test_train_prints_progress_and_results(tmp_path, capsys):
    arguments = ["train", "adding", *QUICK, "--steps", "10", "--compare", "lstm"]
    assert main([*arguments, "--out", str(tmp_path / "r")]) == 0
    printed = capsys.readouterr().out
    assert "unitary  step      5  loss" in printed
    assert "steps/s  defect" in printed
    assert any(line.split() == ["unitary", "lstm", "naive"] for line in printed.splitlines())
    assert "a naive guess scores 0.1667" in printed
    assert str(tmp_path / "r") in printed.replace("\n", "")


@trains
def test_resume_goes_on(tmp_path, capsys):
    folder = str(tmp_path / "r")
    assert main(["train", "adding", *QUICK, "--steps", "5", "--out", folder]) == 0
    assert main(["train", "--resume", folder, "--steps", "10"]) == 0
    printed = capsys.readouterr().out
    assert "unitary  step     10" in printed
    assert "already" not in printed
    assert main(["train", "--resume", folder, "--steps", "7"]) == 0
    assert "already at step 10: give --steps above that" in capsys.readouterr().out
    assert main(["train", "--resume", folder, "--seconds", "1e-6"]) == 0
    assert "s of training: give --seconds above that" in capsys.readouterr().out


@trains
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "task: give one of adding"),
        (["train", "adding", "--lr", "-1"], "lr: got -1.0"),
        (["train", "adding", "--compare", "transformer"], "compare: got 'transformer'"),
        (["train", "adding", "--device", "cuda:99"], "device: 'cuda:99' is not available"),
        (["train", "adding", "--device", "toaster"], "device: 'toaster' is not available"),
        (["train", "pixels", "--dataset", "cats"], "dataset: got 'cats'"),
        (["train", "--resume", "nowhere"], "nowhere/config.json is no configuration"),
        (["train", "--resume", "nowhere", "--lr", "1"], "resume: cannot be combined with lr"),
        (["train", "--resume", "nowhere", "--seed", "0"], "resume: cannot be combined with seed"),
        (["train", "adding", "--steps", "0"], "steps: got 0"),
        (
            ["train", "copying", "--model", "lipschitz"],
            "model: wanted none for copying: it is",
        ),
        (["train", "images", "--length", "20"], "it is an option of adding, copying"),
        (["train", "images", "--permuted"], "permuted: wanted none for images"),
        (["train", "unitary", "--hidden", "170"], "hidden: wanted none for unitary"),
        (["train", "adding", "--no-augment"], "augment: wanted none for adding"),
        (["train", "adding", "--certify", "0.1"], "certify: wanted images and --model lipschitz"),
        (["train", "images", "--depth", "9"], "depth: wanted none for model resnet9"),
    ],
)
def test_one_line_for_a_mistake(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@trains
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_rule_that_help_offers_trains(tmp_path, rule):
    arguments = ["train", "adding", *QUICK, "--steps", "1", "--optimizer", rule]
    assert main([*arguments, "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize("name", ["capturedstep", "sgdg", "isospectral"])
def test_optimizers_that_step_no_unitary_parameters_are_not_offered(name, capsys):
    with pytest.raises(SystemExit):
        main(["train", "adding", "--steps", "1", "--optimizer", name])
    assert "choose from" in capsys.readouterr().err


@trains
def test_a_run_is_never_overwritten(tmp_path, capsys):
    arguments = ["train", "adding", *QUICK, "--steps", "1", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err


@trains
def test_out_may_not_be_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["train", "adding", *QUICK, "--steps", "1", "--out", str(tmp_path / "file")]) == 2
    assert "is a file, wanted a folder" in capsys.readouterr().err


@trains
def test_resume_without_the_device_of_the_run(tmp_path, capsys):
    assert main(["train", "adding", *QUICK, "--steps", "1", "--out", str(tmp_path)]) == 0
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"cpu"', '"cuda:99"'))
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "device: 'cuda:99' is not available" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "task"), [("rich", "adding"), ("matplotlib", "adding"), ("sklearn", "pixels")]
)
def test_missing_packages_name_the_extra(tmp_path, monkeypatch, capsys, package, task):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["train", task, "--steps", "1", "--out", str(tmp_path / "r")]) == 2
    captured = capsys.readouterr()
    assert "pip install 'projunn[train]'" in captured.err
    assert captured.err.count("\n") == 1


def test_help_tells_the_defaults_of_every_task(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    for words in ("adding   length 200, hidden 170", "unitary  size 256, dtype complex64", "rank 1"):
        assert words in printed
    assert max(map(len, printed.splitlines())) <= 80
    together = " ".join(printed.split())
    assert "with --model deep: unitary-lr 0.0001" in together
    assert "with --model lipschitz: augment False, certify 0.141, margin 0.5" in together
    assert "lr 0.003, unitary-lr 0.03, rank 4" in together


def test_unknown_options_and_help():
    for arguments, status in ((["train", "cats"], 2), (["fly"], 2), (["train", "--help"], 0)):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == status


def test_info_tells_versions_and_backend(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in ("projunn", "torch", "triton", "numpy", "python", "backend", "gpu"):
        assert word in printed
    assert "matrices of up to 8,192 numbers by NumPy" in printed
    said = [line for line in printed.splitlines() if line.startswith("convolution")]
    assert len(said) == 3
    assert "up to 28 x 28 or 40 points as matrix products" in said[0]
    assert "up to 64 x 64 or 64 points by Triton kernels" in said[1]
