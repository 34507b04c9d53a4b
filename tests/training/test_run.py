"""Runs: what they leave behind, and that they can be interrupted and resumed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from projunn.optim.options import unitary_learning_rate
from projunn.tasks import TASKS, declarations
from projunn.training import Run, TrainConfig, learner, train
from projunn.training.checkpoint import load_checkpoint
from projunn.training.learner import Learner, rate_factor
from projunn_kernels.files import replacing

pytestmark = pytest.mark.requires("rich", "matplotlib", "sklearn")
SMALL = {"hidden": 8, "length": 10, "batch_size": 4, "log_every": 5, "device": "cpu"}


def run(folder, steps, task="adding", **options):
    small = {k: v for k, v in SMALL.items() if task in declarations().get(k, TASKS)}
    result = Run(TrainConfig.for_task(task, steps=steps, **{**small, **options}), folder)
    assert train(result)
    return result


def without_times(points):
    return [{k: v for k, v in vars(point).items() if k != "seconds"} for point in points]


@pytest.mark.draws
def test_leaves_config_metrics_plot_and_checkpoint(tmp_path):
    result = run(tmp_path / "r", 12, compare=("lstm", "gru", "rnn"))
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "plot.png",
        "checkpoint.pt",
        ".lock",
    }
    assert TrainConfig.load(tmp_path / "r" / "config.json") == result.config
    lines = [json.loads(s) for s in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["model"] == "unitary"] == [5, 10, 12]
    assert {x["model"] for x in lines} == {"unitary", "lstm", "gru", "rnn"}
    unitary = [x for x in lines if x["model"] == "unitary"]
    assert all(0 < x["defect"] < 1e-6 and 0 < x["energy"] <= 1 for x in unitary)
    assert all(x["skipped"] == 0 for x in unitary)
    assert all(x["defect"] is None for x in lines if x["model"] == "lstm")
    assert (tmp_path / "r" / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("task", "options"),
    [
        # (constant: a cooldown depends on the budget, and this test extends it)
        ("adding", {"optimizer": "adamw", "compare": ("lstm",), "schedule": "constant"}),
        ("copying", {"dtype": "complex64", "factorization": "lsi", "rank": 2}),
        ("pixels", {"retraction": "polar", "factorization": "column", "momentum": 0.5}),
        ("unitary", {"size": 6, "compare": ("linear",), "retraction": "cayley"}),
        ("copying", {"sketch_rank": 2, "rank": 2, "momentum": 0.5}),
    ],
)
def test_resumes_bit_for_bit(tmp_path, task, options):
    whole = run(tmp_path / "whole", 14, task, **options)
    run(tmp_path / "parts", 7, task, **options)
    torch.manual_seed(123)
    resumed = Run.resume(tmp_path / "parts", steps=14)
    assert train(resumed)
    for ours, theirs in zip(resumed.learners, whole.learners, strict=True):
        for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            assert torch.equal(p, q)
        assert torch.equal(ours.generator.get_state(), theirs.generator.get_state())
        # The first part ended with a point at step 7; nothing of it is left.
        assert without_times(ours.points) == without_times(theirs.points)
        assert [point.step for point in ours.points] == [5, 10, 14]


def test_cooldown_lowers_both_rates_to_zero_in_the_last_third(tmp_path, monkeypatch):
    rates = []
    learner_step = Learner.take_step

    def noting(learner):
        learner_step(learner)
        group = learner.optimizer.param_groups[0]
        rates.append((group["lr"], unitary_learning_rate(group, (4, 4))))

    monkeypatch.setattr(Learner, "take_step", noting)
    run(tmp_path / "r", 12, schedule="cooldown", lr=0.3, unitary_lr=0.1)
    plain, unitary = zip(*rates, strict=True)
    assert plain[:9] == (0.3,) * 9
    assert plain[9:] == pytest.approx((0.225, 0.15, 0.075))
    assert unitary == pytest.approx([rate / 3 for rate in plain])


def test_an_exponential_schedule_falls_by_the_same_factor_in_equal_shares_of_the_budget():
    factors = [rate_factor("exponential", done) for done in (0.0, 0.5, 1.0, 1.5)]
    assert factors == pytest.approx([1, 0.05**0.5, 0.05, 0.05])


def test_clip_bounds_the_gradient(tmp_path):
    result = run(tmp_path / "r", 1, clip=1e-3)
    parameters = result.learners[0].model.parameters()
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_a_time_budget_has_a_cooldown_too():
    config = TrainConfig.for_task("adding", seconds=10.0, schedule="cooldown", **SMALL)
    learner = Learner("unitary", TASKS["adding"](config.task_options), config)
    learner.seconds = 9.0
    learner.take_step()
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * config.lr)


def test_batches_go_to_a_gpu_without_waiting_for_the_step_before(tmp_path, monkeypatch):
    went = []
    monkeypatch.setattr(learner, "sent", lambda host, device: went.append(host.shape) or host.to(device))
    run(tmp_path / "r", 2)
    assert len(went) == 4


def test_compared_models_see_the_same_batches(tmp_path):
    result = Run(TrainConfig.for_task("adding", steps=1, compare=("lstm",), **SMALL), tmp_path)
    first, second = (learner.task.batch(learner.generator) for learner in result.learners)
    assert torch.equal(first[0], second[0])


def test_seconds_are_a_budget(tmp_path):
    config = TrainConfig.for_task("adding", seconds=0.2, **SMALL)
    result = Run(config, tmp_path)
    assert train(result)
    assert 0.2 <= result.learners[0].seconds < 20  # a step takes milliseconds, on a busy machine more


def test_learns_a_unitary_matrix(tmp_path):
    config = TrainConfig.for_task("unitary", size=16, steps=300, log_every=100, device="cpu")
    result = Run(config, tmp_path)
    assert train(result)
    losses = [point.test_loss for point in result.learners[0].points]
    assert losses[0] > 10 * losses[-1]
    assert losses[-1] < 1e-5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_a_valid_checkpoint(tmp_path, number):
    folder = tmp_path / "r"
    command = [sys.executable, "-m", "projunn", "train", "adding", "--hidden", "8", "--length", "10"]
    options = ["--device", "cpu", "--steps", "1000000", "--log-every", "5", "--out", str(folder)]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        for line in process.stdout:
            if "step" in line:
                break
        time.sleep(0.2)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "--resume" in output
    state = load_checkpoint(folder / "checkpoint.pt", torch.device("cpu")).learners["unitary"]
    assert state["step"] > 0
    assert (folder / "plot.png").exists()
    resumed = Run.resume(folder, steps=state["step"] + 3)
    assert train(resumed)
    assert resumed.learners[0].step == state["step"] + 3


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    options = {"compare": ("lstm",), **SMALL}
    whole = run(tmp_path / "whole", 40, compare=("lstm",))
    stopped = Run(TrainConfig.for_task("adding", steps=40, **options), tmp_path / "parts")
    take_step = Learner.take_step

    def stop_at_13(learner):
        take_step(learner)
        if learner.body == "unitary" and learner.step == 13:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Learner, "take_step", stop_at_13)
    assert not train(stopped)
    monkeypatch.undo()
    assert [learner.step for learner in stopped.learners] == [13, 10]  # in mid-slice
    assert stopped.learners[0].points[-1].step == 13  # measured where it stopped
    resumed = Run.resume(tmp_path / "parts")
    assert train(resumed)
    for ours, theirs in zip(resumed.learners, whole.learners, strict=True):
        assert without_times(ours.points) == without_times(theirs.points)
        for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            assert torch.equal(p, q)


def test_interruption_before_the_first_log_point_has_a_picture(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Learner, "take_step", lambda learner: os.kill(os.getpid(), signal.SIGINT))
    stopped = Run(TrainConfig.for_task("adding", steps=40, **SMALL), tmp_path)
    assert not train(stopped)
    assert (tmp_path / "plot.png").exists()
    assert not [w for w in recwarn if "legend" in str(w.message)]


def test_diverged_numbers_are_null(tmp_path):
    run(tmp_path, 10, "unitary", size=4, lr=1e30, unitary_lr=0.5, compare=("linear",))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    points = [json.loads(line, parse_constant=refuse) for line in lines]
    assert points[-1]["model"] == "linear"
    assert points[-1]["test_loss"] is None


def test_a_broken_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")

    def write_half():
        with replacing(path) as file:
            file.write(b"half of the ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"


def test_default_lr_suits_the_compared_linear_layer(tmp_path):
    result = run(tmp_path, 200, "unitary", size=8, compare=("linear",), log_every=100)
    assert all(learner.points[-1].test_loss < 1e-3 for learner in result.learners)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda states: states["unitary"].pop("generator"),
        lambda states: states["unitary"].update(optimizer=3),
        lambda states: states["unitary"].update(model=None),
        lambda states: states["unitary"].update(points=[{"a": 1}]),
        lambda states: states.update(unitary=[1, 2]),
        lambda states: states.clear(),
    ],
)
def test_altered_checkpoints_are_refused(tmp_path, tamper):
    run(tmp_path, 2)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    tamper(content["learners"])
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint"):
        Run.resume(tmp_path)


def test_broken_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no configuration"):
        Run.resume(tmp_path)
    run(tmp_path, 2)
    checkpoint = tmp_path / "checkpoint.pt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        Run.resume(tmp_path)
    checkpoint.unlink()
    with pytest.raises(ValueError, match="there is no checkpoint"):
        Run.resume(tmp_path)
    checkpoint.write_bytes(content)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"hidden": 8', '"hidden": 9'))
    with pytest.raises(ValueError, match="does not fit"):
        Run.resume(tmp_path)
    config.write_text(config.read_text().replace('"hidden"', '"widht"'))
    with pytest.raises(ValueError, match="options that this version does not know"):
        Run.resume(tmp_path)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("cats", {}, "task: got 'cats', wanted one of adding"),
        ("adding", {"rank": 0}, "rank: got 0"),
        ("adding", {"lr": -1.0}, "lr: got -1.0"),
        ("adding", {"lr": float("nan")}, "lr: got nan"),
        ("adding", {"momentum": -1.0}, "momentum: got -1.0"),
        ("adding", {"momentum": 0.9, "optimizer": "lion"}, "with optimizer 'lion'.*sgd or rmsprop"),
        (
            "adding",
            {"sketch_rank": 1, "factorization": "tangent"},
            "'tangent' with sketch_rank 1.*svd or",
        ),
        (
            "unitary",
            {"sketch_rank": 2, "optimizer": "lion"},
            "'lion' with sketch_rank 2.*sgd or adamw",
        ),
        ("adding", {"steps": 0}, "steps: got 0, wanted a finite number above 0"),
        ("adding", {"seconds": 0.0}, "seconds: got 0.0"),
        ("adding", {"seed": -1}, "seed: got -1, wanted 0 to 4294967295"),
        ("adding", {"compare": ("lstm", "lstm")}, "compare: got lstm,lstm, wanted each model once"),
        ("adding", {"retraction": "qr"}, "retraction: got 'qr'"),
        ("adding", {"compare": ("linear",)}, "compare: got 'linear', wanted some of lstm"),
        ("unitary", {"compare": ("lstm",)}, "compare: got 'lstm', wanted some of linear"),
    ],
)
def test_options_are_checked(task, options, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig.for_task(task, **options)
