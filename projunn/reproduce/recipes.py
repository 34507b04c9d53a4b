"""The experiments of the paper.

Settings are those of the scripts published with it (github.com/facebookresearch/projUNN): projUNN-T of
rank 1, factors by ``lsi``, RMSprop, and a unitary learning rate of 1/32 of the other one, which the
scripts call lr_divider.  Settings that the scripts do not have are this library's: all of ``unitary``
and of ``deep-mnist``.
"""

from typing import Any

from projunn.reproduce.gradients import LAST_BLOCK, RECURRENT, measure_gradients
from projunn.reproduce.recipe import Recipe, Training
from projunn.reproduce.runtime import measure_runtime


def _published(lr: float) -> dict[str, Any]:
    """RMSprop with the published options, at the rate ``lr``; unitary weights have 1/32 of it."""
    options = {"rank": 1, "retraction": "exp", "factorization": "lsi", "optimizer": "rmsprop"}
    return {**options, "lr": lr, "unitary_lr": lr / 32}


def _unitary() -> tuple[Training, ...]:
    """Ranks 1 to 16 of both methods."""
    return tuple(
        Training(
            f"{letter}-rank-{rank}",
            "unitary",
            {"size": 2048, "dtype": "complex64", "rank": rank, "retraction": retraction, "steps": 20000},
            {"size": 256, "steps": 3000},
        )
        for retraction, letter in (("exp", "T"), ("polar", "D"))
        for rank in (1, 2, 4, 8, 16)
    )


def _adding(length: int) -> Training:
    """50 epochs of 2,000 batches; the published rate falls by 0.94 an epoch, to 0.045 of itself."""
    paper = {**_published(1e-3), "length": length, "hidden": 170, "nonlinearity": "relu"}
    paper |= {"init": "identity", "batch_size": 50, "schedule": "exponential", "steps": 100_000}
    return Training(f"T-{length}", "adding", paper, {"steps": 12000 if length < 500 else 6000})


def _copying(delay: int) -> Training:
    """5 epochs of 4,000 batches; the published rate falls to 0.66 of itself, here it stays."""
    paper = {**_published(7e-4), "length": delay, "hidden": 190, "nonlinearity": "relu"}
    paper |= {"init": "henaff", "batch_size": 128, "schedule": "constant", "steps": 20_000}
    cpu = {"nonlinearity": "modrelu", "hidden": 128, "batch_size": 32, "unitary_lr": 2e-4}
    return Training(f"T-{delay}", "copying", paper, {**cpu, "steps": 4000})


def _pixels(permuted: bool) -> tuple[Training, ...]:
    """70 epochs of 469 batches, at the widths of the paper's table."""
    paper = {**_published(7e-4), "dataset": "mnist", "permuted": permuted, "batch_size": 128}
    return tuple(
        Training(
            f"width-{hidden}",
            "pixels",
            {**paper, "hidden": hidden, "steps": 32_830},
            {"dataset": "digits", "steps": 1500},
            images=True,
        )
        for hidden in (116, 170, 360, 512)
    )


def _resnet9() -> tuple[Training, ...]:
    """90 epochs of 195 batches; the script's unitary rate is that of the rest."""
    paper = {**_published(1e-3), "dataset": "cifar10", "model": "resnet9", "width": 64, "augment": True}
    paper |= {"batch_size": 256, "unitary_lr": 1e-3, "steps": 17_550}
    cpu = {"dataset": "digits", "width": 16, "batch_size": 64, "steps": 1200}
    return (
        Training("unitary-T", "images", paper, cpu, images=True),
        Training("unitary-D", "images", {**paper, "retraction": "polar"}, cpu, images=True),
    )


def _deep() -> Training:
    paper = {"dataset": "mnist", "model": "deep", "depth": 100, "width": 16, "augment": False}
    paper |= {"compare": ("plain",), "batch_size": 128, "steps": 5000}
    cpu = {"dataset": "digits", "width": 8, "batch_size": 64, "steps": 200}
    return Training("depth-100", "images", paper, cpu, images=True)


RECIPES: dict[str, Recipe] = {
    "unitary": Recipe("learn a random unitary matrix, ranks 1 to 16", _unitary()),
    "adding": Recipe("the adding task, T = 200 and 750", (_adding(200), _adding(750))),
    "copying": Recipe("the copying task, T = 1000 and 2000", (_copying(1000), _copying(2000))),
    "pixels": Recipe("MNIST pixel by pixel, widths 116 to 512", _pixels(False)),
    "permuted": Recipe("MNIST pixel by pixel in one random order", _pixels(True)),
    "resnet9": Recipe("ResNet9 on CIFAR10, k = 1", _resnet9()),
    "deep-mnist": Recipe("100 convolutions in a chain on MNIST", (_deep(),)),
    "gradients": Recipe(
        "how much of a gradient's energy k directions hold (figure 1a)",
        (LAST_BLOCK, RECURRENT),
        measure_gradients,
    ),
    "runtime": Recipe("time of a step against the dimension (figure 2a)", (), measure_runtime),
}
