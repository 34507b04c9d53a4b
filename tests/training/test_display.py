"""What a run shows: lines, bars, tables and pictures that fit their place and tell the truth."""

import io
import sys

import matplotlib.figure
import pytest
import torch
from rich.console import Console

from projunn.cli import main
from projunn.tasks import TASKS, LogPoint
from projunn.tasks.measurements import Trained
from projunn.tasks.picture import draw_run
from projunn.training import Run, TrainConfig
from projunn.training import display as shown
from projunn.training.display import Display

pytestmark = pytest.mark.requires("rich", "matplotlib")
QUICK = ["--hidden", "8", "--length", "10", "--batch-size", "4", "--device", "cpu"]
WIDE = {"loss": 1.234e-05, "accuracy": 1.0, "defect": 1.2e-07}


def point(model, step, loss=0.0123456, measured=None, defect=4.4e-07):
    values = loss, loss, WIDE["accuracy"], defect, 0.5 if defect else None, 0, measured or {}
    return LogPoint(model, step, step / 41.0, *values)


def learners_of(task, compare, tmp_path, **options):
    options = {"steps": 123456, "device": "cpu", **options}
    run = Run(TrainConfig.for_task(task, compare=compare, **options), tmp_path)
    for learner in run.learners:
        measured = {"certified": 1.0, "gains": [1.0]} if task == "images" else {}
        learner.points.append(point(learner.body, 123456, WIDE["loss"], measured))
        learner.step = 123456
    return run


RUNS = [
    ("copying", ("lstm", "gru", "rnn"), {"hidden": 8}),
    ("images", ("cayley",), {"model": "lipschitz", "certify": 0.141, "width": 4}),
    ("unitary", ("linear",), {"size": 4}),
]


@pytest.mark.draws
@pytest.mark.requires("sklearn")
@pytest.mark.parametrize(("task", "compare", "options"), RUNS)
@pytest.mark.parametrize("terminal", [False, True])
def test_tables_fit_60_columns_and_bars_80(task, compare, options, terminal, tmp_path, monkeypatch):
    run, file = learners_of(task, compare, tmp_path, **options), io.StringIO()
    monkeypatch.setattr(
        shown, "Console", lambda **o: Console(file=file, force_terminal=terminal, width=200, **o)
    )
    with Display(run.task, run.learners) as display:
        if terminal:
            bars = Console(width=200, file=io.StringIO())
            bars.print(display._progress)
            lines = bars.file.getvalue().splitlines()
            assert len(lines) == len(run.learners)
            assert all(len(line.rstrip()) <= 80 for line in lines), lines
            assert all("loss 1.23e-05, 100.0%" in line for line in lines), lines
    start = len(file.getvalue())
    display.close(run.learners, tmp_path, interrupted=False)
    table = file.getvalue()[start:].split("Results:")[0].splitlines()
    plain = [line for line in table if "\x1b" not in line] if terminal else table
    assert all(len(line.rstrip()) <= 60 for line in plain), table
    if not terminal:
        assert any(line.split()[0] == "loss" and "1.23e-05" in line for line in table if line.strip())
        assert any("naive" in line for line in table)


def drawn(points, task="copying", axis="step"):
    figure = matplotlib.figure.Figure(layout="constrained")
    task = TASKS[task](TrainConfig.for_task(task, steps=10).task_options)
    models = [Trained(name, "#0b6e99", torch.nn.Identity(), own) for name, own in points.items()]
    draw_run(figure, task, models, axis, 1)
    figure.savefig(io.BytesIO())
    return figure


@pytest.mark.draws
def test_a_single_point_is_seen_and_every_line_has_a_label():
    figure = drawn({"unitary": [point("unitary", 7)], "lstm": [point("lstm", 7, 0.3, defect=None)]})
    loss, defect, energy = figure.axes
    assert all(line.get_marker() == "o" for line in (*loss.lines[:2], *defect.lines, *energy.lines))
    assert len(defect.lines) == 1
    assert not any(line.get_label().startswith("_") for line in loss.lines)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(loss.lines) == 5
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert loss.get_ylabel() == "cross-entropy (nats)"
    assert all(axes.get_ylabel() and axes.get_xlabel() for axes in figure.axes)
    assert drawn({"unitary": [point("unitary", 7)]}, axis="seconds").axes[0].get_xlabel().endswith("(s)")


@pytest.mark.draws
def test_many_points_are_not_marked_and_steps_are_whole_numbers():
    figure = drawn({"unitary": [point("unitary", step) for step in range(1, 40)]})
    assert figure.axes[0].lines[0].get_marker() in ("", "None", None)
    few = drawn({"unitary": [point("unitary", step) for step in (1, 2, 3)]})
    for axes in few.axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
        assert axes.get_xlim()[0] == 0


@pytest.mark.draws
def test_an_axis_is_linear_from_zero_unless_values_span_a_decade():
    near = drawn({"unitary": [point("unitary", 1, 0.5), point("unitary", 2, 0.4)]})
    assert (near.axes[0].get_yscale(), near.axes[0].get_ylim()[0]) == ("linear", 0)
    far = drawn({"unitary": [point("unitary", 1, 0.5), point("unitary", 2, 1e-4)]})
    assert far.axes[0].get_yscale() == "log"


@pytest.mark.draws
def test_a_loss_that_is_not_finite_is_said_in_the_picture():
    figure = drawn({"lstm": [point("lstm", 1), point("lstm", 2, float("inf"), defect=None)]})
    assert [t.get_text() for t in figure.axes[0].texts] == ["not finite, not drawn: lstm"]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"steps": 40}, 2),
        ({"steps": 5}, 1),
        ({"steps": 1000}, 50),
        ({"steps": 100000}, 100),
        ({"seconds": 6.0}, 12),
        ({"seconds": 600.0}, 100),
        ({"steps": 40, "seconds": 600.0}, 2),
        ({"steps": 40, "log_every": 7}, 7),
    ],
)
def test_short_runs_log_more_often(budget, expected):
    assert TrainConfig.for_task("adding", **budget).log_every == expected


def test_lists_may_have_spaces_and_resume_takes_a_device(tmp_path, capsys):
    folder = str(tmp_path / "r")
    start = ["train", "adding", *QUICK, "--steps", "4", "--compare", " lstm, rnn ,", "--out", folder]
    assert main(start) == 0
    assert main(["train", "--resume", folder, "--device", "cuda:99"]) == 2
    assert "device: 'cuda:99' is not available" in capsys.readouterr().err
    more = ["--device", "cpu", "--steps", "6", "--log-every", "3"]
    assert main(["train", "--resume", folder, *more]) == 0
    resumed = Run.resume(tmp_path / "r")
    assert resumed.config.device == "cpu"
    assert resumed.config.log_every == 3
    for learner in resumed.learners:  # what was logged before stays
        assert [p.step for p in learner.points] == [3, 6]
    assert [learner.body for learner in resumed.learners] == ["unitary", "lstm", "rnn"]


def test_tensorboard_that_is_missing_is_said_before_the_run(tmp_path, monkeypatch, capsys):
    for name in [n for n in sys.modules if "tensorboard" in n and not n.startswith("projunn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    folder = tmp_path / "r"
    assert main(["train", "adding", *QUICK, "--steps", "2", "--tensorboard", "--out", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "pip install 'projunn[tensorboard]'" in error
    assert error.count("\n") == 1
    assert not folder.exists()


@pytest.mark.requires("tensorboard")
def test_tensorboard_gets_a_curve_for_each_model(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "r"
    command = ["train", "adding", *QUICK, "--steps", "4", "--log-every", "2", "--compare", "rnn"]
    assert main([*command, "--tensorboard", "--out", str(folder)]) == 0
    assert main(["train", "--resume", str(folder), "--steps", "6"]) == 0
    expected = {learner.body: learner.points for learner in Run.resume(folder).learners}
    for model, points in expected.items():
        events = EventAccumulator(str(folder / "tensorboard" / model)).Reload()
        losses = events.Scalars("loss/held-out")
        assert [event.step for event in losses] == [p.step for p in points] == [2, 4, 6]
        assert losses[-1].value == pytest.approx(points[-1].test_loss)
    assert (
        "unitary/defect"
        in EventAccumulator(str(folder / "tensorboard/unitary")).Reload().Tags()["scalars"]
    )
