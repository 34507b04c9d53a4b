"""Runs of ``projunn train`` in processes of their own, which save after every few steps."""

import multiprocessing
import os
import random
import sys

import torch

from projunn.training.checkpoint import load_checkpoint

CPU = torch.device("cpu")
# Processes are forked from one that has imported everything, and so start in milliseconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.trials.programs", "torch._dynamo", "projunn.training.display"])


def options(number):
    """The command line of a small run, which differs from number to number."""
    choose = random.Random(number)
    task = choose.choice(("adding", "copying", "unitary"))
    size = ["--size", "6"] if task == "unitary" else ["--hidden", "6", "--length", "6"]
    dtypes = ("float32",) if task == "adding" else ("float32", "complex64")
    rule = choose.choice(("sgd", "rmsprop", "adamw", "lion"))
    factorization = choose.choice(("subspace", "lsi", "column", "single_pass", "tangent"))
    return [
        *("train", task, *size, "--optimizer", rule, "--factorization", factorization),
        *("--dtype", choose.choice(dtypes), "--rank", str(choose.choice((1, 2)))),
        *("--batch-size", "4", "--log-every", "7", "--device", "cpu", "--seed", str(number)),
        *("--schedule", "constant"),  # others depend on the budget, with which runs are resumed
    ]


def start(arguments, folder):
    """A process that runs a command line in a folder, quietly."""
    process = _SERVER.Process(target=_run, args=(arguments, str(folder)))
    process.start()
    return process


def _run(arguments, folder):
    from projunn import cli
    from projunn.training import plots, run

    run._CHECKPOINT_EVERY = 0.0
    plots.plot_run = lambda *_: None  # a picture takes as long as the rest
    torch.set_num_threads(1)
    os.chdir(folder)
    with open(f"said.{os.getpid()}", "w") as said:
        sys.stdout = sys.stderr = said
        sys.exit(cli.main(arguments))


def said(folder, process):
    """What a process printed."""
    return (folder / f"said.{process.pid}").read_text()


def same(a, b):
    """Whether a nested state has the bits of another one, which may have more entries."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))
    if isinstance(a, dict):
        return a.keys() <= b.keys() and all(same(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def state(folder):
    """What the checkpoint of a run holds."""
    return load_checkpoint(folder / "checkpoint.pt", CPU).learners
