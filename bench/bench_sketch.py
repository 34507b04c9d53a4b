"""Do sketched gradients train as well?  Equal steps, the same batches, several seeds.

    sketched      sketch_rank = 4, a step of rank 1: some columns to spare, as is usual for sketches
                  (Halko, Martinsson, Tropp, SIAM Review 53, 2011, section 4.2)
    bare sketch   sketch_rank = 1, a step of rank 1
    dense         a step of rank 1 of the dense gradient
    full rank     every direction of the dense gradient

All with the task's own optimizer and rates: under rmsprop a sketched weight has Adafactor's second
moments, rows and columns, in place of elementwise ones, taken of what the sketch saw.  Recorded are the
scores at the end of every run; the curves are drawn.  Sizes are small: two cores do them in minutes.
"""

from dataclasses import replace
from typing import Any

from bench.records import Results
from projunn.tasks import TASKS
from projunn.training.config import TrainConfig
from projunn.training.learner import Learner

RANK, SKETCH_RANK = 1, 4
SEEDS = (0, 1, 2)
COLORS = {
    "sketched": "#0b6e99",
    "bare sketch": "#9b51b3",
    "dense": "#d9730d",
    "full rank": "#7a7a7a",
}
CASES: dict[str, dict[str, Any]] = {
    "unitary": {"size": 64, "steps": 1500, "log_every": 50},
    "adding": {"length": 50, "hidden": 64, "steps": 2000, "log_every": 100},
    "copying": {"length": 50, "hidden": 64, "steps": 1500, "log_every": 75},
    "pixels": {"hidden": 64, "steps": 800, "log_every": 50},
}


def variants(config: TrainConfig) -> dict[str, TrainConfig]:
    """The trainings of one task and seed."""
    n = config.size if config.task == "unitary" else config.hidden
    return {
        "sketched": replace(config, rank=RANK, sketch_rank=SKETCH_RANK),
        "bare sketch": replace(config, rank=RANK, sketch_rank=RANK),
        "dense": replace(config, rank=RANK),
        "full rank": replace(config, rank=n, factorization="svd"),
    }


def train(config: TrainConfig) -> Learner:
    """A whole run."""
    learner = Learner("unitary", TASKS[config.task](config.task_options), config)
    while not learner.finished:
        learner.take_step()
    return learner


def run(results: Results, quick: bool = False) -> None:
    """Train, print, record, draw."""
    curves: dict[str, dict[str, list[Learner]]] = {}
    for task, options in CASES.items():
        given = options | ({"steps": 20, "log_every": 10} if quick else {})
        curves[task] = {name: [] for name in COLORS}
        rows = []
        for seed in SEEDS[: 1 if quick else None]:
            base = TrainConfig.for_task(task, seed=seed, **given)
            for name, config in variants(base).items():
                learner = train(config)
                curves[task][name].append(learner)
                last = learner.points[-1]
                rows.append(
                    {
                        "task": task,
                        "gradients": name,
                        "rank": config.rank,
                        "sketch_rank": config.sketch_rank,
                        "seed": seed,
                        "steps": learner.step,
                        "test_loss": round(last.test_loss, 6),
                        "test_accuracy": last.test_accuracy,
                        "seconds": round(learner.seconds, 1),
                        "defect": last.defect,
                    }
                )
        results.report("sketch", f"{task}: scores after equal steps", rows)
    if not quick:
        draw(results, curves)


def draw(results: Results, curves: dict[str, dict[str, list[Learner]]]) -> None:
    """``sketch.png``: the score against the step, every seed a line."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 3.2), layout="constrained")
        for axes, (task, by_name) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
            for name, learners in by_name.items():
                for i, learner in enumerate(learners):
                    axes.plot(
                        [p.step for p in learner.points],
                        [p.test_loss for p in learner.points],
                        color=COLORS[name],
                        label=name if i == 0 else None,
                        alpha=0.8,
                        linewidth=1.2,
                    )
            axes.set(title=task, xlabel="step", yscale="log")
            axes.set_ylabel(f"test {TASKS[task].loss_name}")
        figure.axes[0].legend(frameon=False)
        figure.savefig(results.folder / "sketch.png", dpi=130)
