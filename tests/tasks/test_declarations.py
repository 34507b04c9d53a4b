"""What tasks declare about themselves is all that the rest needs to know of them."""

import ast
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import projunn.cli
import projunn.training
from projunn.tasks import TASKS, LogPoint, Metric, TaskOptions, declarations
from projunn.training import TrainConfig


@pytest.mark.parametrize("name", declarations())
def test_tasks_that_share_an_option_agree_on_its_kind_and_place(name):
    assert len({(o.kind, o.group) for o in declarations()[name].values()}) == 1


def test_a_declared_option_hides_no_option_of_every_task():
    counts = Counter(("task", *declarations(), *TrainConfig.__annotations__))
    assert max(counts.values()) == 1
    assert set(counts) == {field.name for field in fields(TrainConfig)}


def test_metrics_hide_no_column_of_the_log():
    names = [metric.name for task in TASKS.values() for metric in task.metrics]
    assert not set(names) & {field.name for field in fields(LogPoint)}


@pytest.mark.parametrize("name", TASKS)
def test_every_default_is_an_option_that_the_task_takes(name):
    config = TrainConfig.for_task(name)
    for option, value in TASKS[name].defaults_for({}).items():
        assert getattr(config, option) == value


@pytest.mark.parametrize("name", [n for n in TASKS if n not in ("pixels", "images")])
def test_every_model_of_a_task_is_built_and_has_a_colour(name):
    task = TASKS[name](TaskOptions(size=4, hidden=4, length=12, batch_size=2))
    x, y = task.batch(torch.Generator().manual_seed(0))
    for body in ("unitary", *task.compared):
        assert task.loss(task.build(body)(x), y).isfinite()
    assert name in task.title
    assert len({task.color(body) for body in ("unitary", *task.compared)}) == 1 + len(task.compared)


def test_nothing_outside_the_folder_of_tasks_names_a_task():
    # "unitary" may stand there: it is also the name of the model that every run trains.
    names = {name for name in TASKS if name != "unitary"}
    classes = {task.__name__ for task in TASKS.values()}
    folder = Path(projunn.training.__file__).parent
    for path in (*folder.glob("*.py"), Path(projunn.cli.__file__)):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        words = {node.value for node in nodes if isinstance(node, ast.Constant)}
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        assert not words & names, path
        assert not used & classes, path


def test_a_metric_prints_only_what_was_measured():
    point = LogPoint("unitary", 1, 0.1, 1.0, 1.0, None, None, None, None, {"exact": 0.5, "wide": None})
    assert Metric("exact", "{:.1%}").text(point) == "50.0%"
    assert Metric("exact").text(point) is None
    assert Metric("wide", "{:.1%}").text(point) is None
    assert Metric("unknown", "{:.1%}").text(point) is None
    assert LogPoint.from_flat(point.flat()) == point
