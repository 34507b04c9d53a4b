"""The folder of a run: nobody else writes into it, and nothing in it is believed without a check."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import filelock
import pytest
import torch

import projunn
from projunn import cli
from projunn.tasks import TASKS, declarations
from projunn.training import Run, TrainConfig, train
from projunn.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from projunn_kernels.files import replacing

pytestmark = pytest.mark.requires("rich", "matplotlib", "sklearn")
SMALL = {"hidden": 8, "length": 10, "batch_size": 4, "log_every": 5, "device": "cpu"}
CPU = torch.device("cpu")


def run(folder, steps, task="adding", **options):
    small = {k: v for k, v in SMALL.items() if task in declarations().get(k, TASKS)}
    result = Run(TrainConfig.for_task(task, steps=steps, **{**small, **options}), folder)
    assert train(result)
    return result


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_no_flipped_bit_is_resumed_from(tmp_path):
    run(tmp_path, 3, compare=("lstm",))
    file = tmp_path / "checkpoint.pt"
    content, whole = bytearray(file.read_bytes()), load_checkpoint(file, CPU)
    choose, refused = random.Random(0), 0
    for _ in range(250):
        at, bit = choose.randrange(len(content)), 1 << choose.randrange(8)
        content[at] ^= bit
        file.write_bytes(content)
        content[at] ^= bit
        try:
            read = load_checkpoint(file, CPU)
        except ValueError as error:
            assert str(error).startswith(str(file))  # noqa: PT017
            refused += 1
        else:  # a bit that means nothing, between the records
            assert same(vars(read), vars(whole))
    assert refused > 100


def changed(folder, change):
    """The checkpoint of a run with a change that its checksum knows of."""
    read = load_checkpoint(folder / "checkpoint.pt", CPU)
    change(read.learners["unitary"])
    save_checkpoint(folder / "checkpoint.pt", read)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state["model"]["body.weight_hh_l0"].mul_(3), "is not unitary, its defect is 8"),
        (lambda state: state["model"]["body.weight_hh_l0"].fill_(torch.nan), "not finite"),
        (lambda state: state["model"].pop("body.weight_hh_l0"), "Error.* loading state_dict"),
        (
            lambda state: state["model"].update({"body.weight_hh_l0": torch.eye(9)}),
            "Error.* loading state_dict",
        ),
    ],
)
def test_weights_that_no_training_leaves_behind_are_refused(tmp_path, change, words):
    run(tmp_path, 2)
    names = load_checkpoint(tmp_path / "checkpoint.pt", CPU).learners["unitary"]["model"]
    assert "body.weight_hh_l0" in names, list(names)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    changed(tmp_path, change)
    before["checkpoint.pt"] = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=words):
        Run.resume(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_checkpoints_of_the_format_before_resume(tmp_path):
    run(tmp_path, 4)
    file = tmp_path / "checkpoint.pt"
    content = torch.load(file, weights_only=True)
    torch.save({"format": 1, "learners": content["learners"]}, file)
    resumed = Run.resume(tmp_path, steps=6)
    assert train(resumed)
    assert load_checkpoint(file, CPU).config["steps"] == 6


def edit(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    "values",
    [
        {"rank": 2},
        {"momentum": 0.5},
        {"lr": 0.5},
        {"unitary_lr": 0.5},
        {"seed": 1},
        {"schedule": "cosine"},
        {"hidden": 9},
        {"retraction": "polar"},
        {"compare": ["lstm"]},
        {"optimizer": "sgd"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_an_edit_that_is_not_followed_is_refused(tmp_path, values):
    run(tmp_path, 2)
    edit(tmp_path, **values)
    with pytest.raises(ValueError, match=f"does not fit config.json: {next(iter(values))} is"):
        Run.resume(tmp_path)


def test_an_edited_budget_is_followed(tmp_path):
    run(tmp_path, 2)
    edit(tmp_path, steps=7, log_every=3)
    resumed = Run.resume(tmp_path)
    assert train(resumed)
    assert [point.step for point in resumed.learners[0].points] == [3, 6, 7]


@pytest.mark.parametrize(
    "values",
    [
        {"hidden": 8.5},
        {"hidden": True},
        {"lr": "fast"},
        {"lr": None},
        {"compare": "lstm"},
        {"schedule": 3},
        {"seed": "0"},
    ],
    ids=str,
)
def test_types_in_an_edited_configuration_are_checked(tmp_path, values):
    run(tmp_path, 2)
    edit(tmp_path, **values)
    with pytest.raises(ValueError, match=r"is no configuration of a run: .*: got"):
        Run.resume(tmp_path)


def test_two_runs_that_start_in_one_second_have_a_folder_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260310-120000")
    command = ["train", "adding", "--hidden", "8", "--length", "10", "--steps", "2", "--device", "cpu"]
    assert cli.main(command) == 0
    assert cli.main(command) == 0
    names = {folder.name for folder in (tmp_path / "runs").iterdir()}
    assert names == {"adding-20260310-120000", "adding-20260310-120000-2"}


def test_one_process_writes_into_a_folder(tmp_path):
    folder = tmp_path / "r"
    command = [sys.executable, "-m", "projunn", "train", "adding", "--hidden", "8", "--length", "10"]
    command += ["--device", "cpu", "--steps", "1000000", "--log-every", "5", "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        next(line for line in process.stdout if "step" in line)
        with pytest.raises(ValueError, match=f"out: another process trains in {folder}"):
            train(Run(TrainConfig.for_task("adding", steps=2, **SMALL), folder))
        process.send_signal(signal.SIGKILL)  # the lock goes with the process
        process.wait()
    finally:
        process.kill()
    (folder / "config.json.0123.partial").write_text("half")
    resumed = Run.resume(folder)
    resumed = Run.resume(folder, steps=resumed.learners[0].step + 1)
    assert train(resumed)
    assert not list(folder.glob("*.partial"))


def test_a_run_does_not_replace_another_one(tmp_path):
    run(tmp_path, 2)
    with pytest.raises(ValueError, match=f"out: {tmp_path} holds a run already"):
        run(tmp_path, 2)


def test_of_two_runs_that_were_read_together_the_second_loses_nothing(tmp_path):
    run(tmp_path, 2)
    first, second = Run.resume(tmp_path, steps=4), Run.resume(tmp_path, steps=6)
    assert train(first)
    with pytest.raises(ValueError, match=f"out: another process has trained in {tmp_path} since it was"):
        train(second)
    assert load_checkpoint(tmp_path / "checkpoint.pt", CPU).learners["unitary"]["step"] == 4
    assert train(Run.resume(tmp_path, steps=6))


def test_the_command_reads_a_run_under_the_lock_of_its_folder(tmp_path, monkeypatch):
    run(tmp_path, 2)
    lock, refused = filelock.FileLock(tmp_path / ".lock"), []

    def load(path, device):
        with pytest.raises(filelock.Timeout):
            lock.acquire(timeout=0)
        refused.append(path)
        return load_checkpoint(path, device)

    monkeypatch.setattr("projunn.training.run.load_checkpoint", load)
    assert cli.main(["train", "--resume", str(tmp_path), "--steps", "4"]) == 0
    assert refused == [tmp_path / "checkpoint.pt"]
    lock.acquire(timeout=0)
    lock.release()


@pytest.mark.parametrize("content", [(), ("notes.txt",)], ids=["missing", "other files"])
def test_a_folder_that_holds_no_run_stays_as_it_is(tmp_path, capsys, content):
    folder = tmp_path / "r"
    for name in content:
        folder.mkdir()
        (folder / name).touch()
    assert cli.main(["train", "--resume", str(folder)]) == 2
    assert "is no configuration of a run" in capsys.readouterr().err
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == list(content)


def test_writing_follows_no_link(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    file = tmp_path / "config.json"
    for name in ("config.json", "config.json.partial", f"config.json.{os.getpid()}"):
        (tmp_path / name).symlink_to(secret)
    with replacing(file) as opened:
        opened.write(b"new")
    assert secret.read_text() == "mine"
    assert file.read_text() == "new"


def test_a_run_that_was_stopped_after_its_last_step_has_the_same_record(tmp_path):
    whole = run(tmp_path, 12).points
    resumed = Run.resume(tmp_path)
    assert resumed.points == whole
    assert train(resumed)
    assert resumed.points == whole


def test_a_resumed_run_has_the_threads_of_the_first(tmp_path, monkeypatch):
    run(tmp_path, 2)
    read = load_checkpoint(tmp_path / "checkpoint.pt", CPU)
    assert read.threads == torch.get_num_threads()
    save_checkpoint(tmp_path / "checkpoint.pt", Checkpoint(read.learners, read.config, 3))
    seen, step = [], projunn.training.learner.Learner.take_step
    monkeypatch.setattr(
        "projunn.training.learner.Learner.take_step",
        lambda learner: seen.append(torch.get_num_threads()) or step(learner),
    )
    assert train(Run.resume(tmp_path, steps=4))
    assert seen == [3, 3]
    assert torch.get_num_threads() == read.threads


def test_a_model_whose_loss_stays_infinite_is_given_up(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--size", "4", "--lr", "1e30", "--unitary-lr", "0.5", "--compare", "linear"]
    options += ["--steps", "400", "--log-every", "100"]
    command = ["train", "unitary", *options, "--device", "cpu", "--out", "r"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "linear: given up at step 200, its loss was not finite any more" in printed
    steps = {learner.body: learner.step for learner in Run.resume(tmp_path / "r").learners}
    assert steps == {"unitary": 400, "linear": 200}
