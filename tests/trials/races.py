"""Two processes that start at once: runs get a folder each, and a folder has one writer."""

import random
import time

from tests.trials import programs

GOOD = (
    "two new runs, two folders",
    "one of two resumed, the other refused",
    "resumed one after the other",
)


def trial(number, folder):
    choose, command = random.Random(f"races {number}"), programs.options(number)
    if choose.random() < 0.5:
        return new_runs([*command, "--steps", "20"], folder)
    return resumed(command, folder, choose.uniform(0, 0.05))


def new_runs(command, folder):
    """Two runs without ``--out``, in the same second."""
    while time.time() % 1 > 0.5:
        time.sleep(0.01)
    both = [programs.start(command, folder) for _ in range(2)]
    for one in both:
        one.join()
    if any(one.exitcode for one in both):
        return f"status {[one.exitcode for one in both]}: {programs.said(folder, both[0])[-200:]}"
    states = [programs.state(run) for run in (folder / "runs").iterdir()]
    if len(states) != 2:
        return f"{len(states)} folders of two runs"
    return GOOD[0] if programs.same(*states) else "two runs of one seed have other bits"


def resumed(command, folder, apart):
    """Two processes that resume one run; a third one is undisturbed."""
    first = programs.start([*command, "--steps", "10", "--out", "run"], folder)
    whole = programs.start([*command, "--steps", "40", "--out", "whole"], folder)
    first.join()
    whole.join()
    both = []
    for _ in range(2):
        both.append(programs.start(["train", "--resume", "run", "--steps", "40"], folder))
        time.sleep(apart)
    for one in both:
        one.join()
    words = [programs.said(folder, one) for one in both]
    if not programs.same(programs.state(folder / "whole"), programs.state(folder / "run")):
        return "other bits than an undisturbed run"
    ends = sorted(one.exitcode for one in both)
    if ends == [0, 2]:
        refused = any("another process trains in" in text for text in words)
        return GOOD[1] if refused else f"refused without saying why: {words}"
    return GOOD[2] if ends == [0, 0] else f"status {ends}: {words}"
