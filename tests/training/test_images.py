"""Runs on images: what they leave, what they learn."""

import json
from dataclasses import replace
from math import log

import pytest
import torch
from torch import nn

from projunn import lipschitz_bound
from projunn.nn import UnitaryConv2d, UnitaryLinear
from projunn.tasks import TASKS, TaskOptions
from projunn.tasks.measurements import Trained
from projunn.training import Run, TrainConfig, train

pytestmark = pytest.mark.requires("rich", "matplotlib", "sklearn")


def run(folder, **options):
    result = Run(TrainConfig.for_task("images", device="cpu", **options), folder)
    assert train(result)
    return result


@pytest.mark.draws
@pytest.mark.parametrize("model", ["resnet9", "deep", "lipschitz"])
def test_every_model_trains_beside_the_others(tmp_path, model):
    others = ("cayley",) if model == "lipschitz" else ("plain", "cayley")
    options = {"model": model, "width": 4, "steps": 4, "log_every": 2, "compare": others}
    options |= {"depth": 3} if model == "deep" else {}
    result = run(tmp_path, **options)
    for learner in result.learners:
        assert learner.points[-1].test_accuracy is not None
        assert learner.points[-1].measured["gains"]
    unitary = result.learners[0].points[-1]
    assert all(g <= 1 + 1e-5 for g in unitary.measured["gains"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_certified_accuracy_is_logged_and_holds(tmp_path, capsys):
    """Against its definition: margins of the trained model, at its measured norms."""
    options = {"model": "lipschitz", "width": 4, "log_every": 5, "compare": ("cayley",)}
    result = run(tmp_path, steps=10, certify=0.02, **options)
    assert capsys.readouterr().out.count("  certified ") == 4
    for learner in result.learners:
        last = learner.points[-1]
        certified = last.measured["certified"]
        assert 0 < certified < last.test_accuracy
        x, labels = result.task.test_data()
        model = learner.model.eval()
        with torch.no_grad():
            logits, rows = model(x), model[-1].weight
            gaps = logits.gather(1, labels[:, None]) - logits
            reach = 0.02  # in pixels, which are what the model gets
            needed = lipschitz_bound(nn.Sequential(*list(model)[:-1])) * reach * torch.cdist(rows, rows)
            others = nn.functional.one_hot(labels, 10) == 0
            sure = ((gaps > needed[labels]) | ~others).all(1)
        exact = sure.double().mean().item()  # without the rounding of the logits
        assert exact - 0.01 < certified <= exact
        noise = torch.randn_like(x)
        noise *= reach / noise.flatten(1).norm(dim=1)[:, None, None, None]
        with torch.no_grad():
            moved = model(x + noise).argmax(1)
        assert torch.equal(moved[sure], labels[sure])
    with open(tmp_path / "metrics.jsonl") as lines:
        assert all(0 <= json.loads(line)["certified"] <= 1 for line in lines)


def test_drift_lowers_the_certificate(tmp_path):
    config = TrainConfig.for_task("images", model="lipschitz", width=4, steps=1, device="cpu")
    result = Run(config, tmp_path)
    model, task = result.learners[0].model, result.task
    before = task.certified(model, torch.device("cpu"), 0.01)
    with torch.no_grad():
        model.get_submodule("0").weight[14] *= 50  # high frequencies (4, 3), of which digits have little
    assert before > 0
    assert task.certified(model, torch.device("cpu"), 0.01) < before


def test_distances_are_in_pixels():
    from sklearn.datasets import load_digits

    task = TASKS["images"](TaskOptions())
    digits = load_digits().images / 16
    x, _ = task.test_data()
    ours = (x[0] - x[1]).norm()
    theirs = torch.from_numpy(digits[4] - digits[9]).norm()
    assert ours == pytest.approx(theirs.item() * task.stretch, rel=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_schedules_and_resuming(tmp_path, schedule):
    options = {"model": "deep", "width": 4, "depth": 2, "schedule": schedule, "log_every": 3}
    result = run(tmp_path, steps=6, **options)
    groups = result.learners[0].optimizer.param_groups
    assert 0 < groups[0]["lr"] < result.config.lr
    resumed = Run.resume(tmp_path)
    for p, q in zip(
        resumed.learners[0].model.parameters(), result.learners[0].model.parameters(), strict=True
    ):
        assert torch.equal(p, q)


def test_unitary_depth_trains_where_plain_depth_does_not(tmp_path):
    options = {"model": "deep", "depth": 40, "width": 8, "lr": 3e-3, "unitary_lr": 1e-3}
    result = run(tmp_path, **options, augment=False, steps=40, compare=("plain",), log_every=40)
    unitary, plain = (learner.points[-1] for learner in result.learners)
    assert unitary.test_accuracy > 0.5  # 0.69 and more
    assert plain.test_accuracy < 0.25


def test_diverged_gains_are_null(tmp_path, monkeypatch):
    monkeypatch.setattr("projunn.tasks.images.norm_gains", lambda *_: [1.0, float("inf")])
    run(tmp_path, model="deep", width=4, depth=2, steps=1)
    assert '"gains": [1.0, null]' in (tmp_path / "metrics.jsonl").read_text()


def test_lipschitz_models_are_certified():
    assert TrainConfig.for_task("images", model="lipschitz").certify == 36 / 255
    assert TrainConfig.for_task("images", model="lipschitz").margin == 0.5
    assert TrainConfig.for_task("images").certify is None
    assert TrainConfig.for_task("images").margin is None


def test_runs_of_before_there_was_a_margin_go_on_as_they_were(tmp_path):
    """Their ``config.json`` names none: standardised images, plain cross-entropy, orthonormal rows."""
    options = {"model": "lipschitz", "width": 4, "log_every": 2, "device": "cpu"}
    config = replace(TrainConfig.for_task("images", steps=2, **options), margin=None)
    assert train(Run(config, tmp_path))
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    del written["margin"]
    path.write_text(json.dumps(written))
    resumed = Run.resume(tmp_path, steps=4)
    assert train(resumed)
    task, model = resumed.task, resumed.learners[0].model
    assert isinstance(model[0], UnitaryConv2d)
    assert isinstance(model[-1], UnitaryLinear)
    x, y = task.test_data()
    assert task.naive == pytest.approx(log(10))
    assert resumed.points[-1].test_loss == pytest.approx(
        nn.functional.cross_entropy(model.eval()(x), y).item(), rel=1e-4
    )
    assert x.std() == pytest.approx(1, rel=0.05)


def test_a_margin_certifies_more_at_its_distance(tmp_path):
    shares = {}
    for margin in (0.1, 0.7):
        options = {"model": "lipschitz", "width": 4, "certify": 0.3, "log_every": 60}
        result = run(tmp_path / str(margin), steps=60, margin=margin, **options)
        shares[margin] = result.points[-1].measured["certified"]
        x, _ = result.task.test_data()
        assert x.min() == 0
        assert x.max() == 1
    assert shares[0.7] > shares[0.1] + 0.05


@pytest.mark.parametrize("model", ["resnet9", "lipschitz"])
def test_the_picture_says_why_a_unitary_convolution_shrinks(tmp_path, model):
    from matplotlib.figure import Figure

    result = run(tmp_path, model=model, width=4, steps=1)
    (learner,), figure = result.learners, Figure()
    result.task.draw(figure, [Trained("unitary", "#0b6e99", learner.model, learner.points)], "step", 1)
    (label,) = (ax.get_xlabel() for ax in figure.axes if ax.get_xlabel().startswith("convolution"))
    shrinks = min(learner.points[-1].measured["gains"]) < 1 - 1e-3
    assert label.endswith("(unitary below 1: fewer outputs)") == shrinks == (model == "lipschitz")


def test_deep_models_turn_slower():
    assert TrainConfig.for_task("images", model="deep").unitary_lr == 1e-4
    assert TrainConfig.for_task("images", model="deep", unitary_lr=0.1).unitary_lr == 0.1
    assert TrainConfig.for_task("images").unitary_lr == 4e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 3}, "images take float32 and an even width"),
        ({"compare": ("lstm",)}, "compare: got 'lstm', wanted some of plain, cayley"),
        ({"model": "lipschitz", "compare": ("plain",)}, "plain layers are not 1-Lipschitz"),
        ({"certify": 0.1}, "certify: wanted images and --model lipschitz"),
        ({"model": "lipschitz", "certify": -1.0}, "certify: got -1.0"),
        ({"margin": 0.1}, "margin: wanted images and --model lipschitz"),
        ({"model": "lipschitz", "margin": 0.0}, "margin: got 0.0"),
        ({"schedule": "sometimes"}, "schedule: got 'sometimes'"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig.for_task("images", **options)
