"""A run that is killed at random times, resumed and killed again ends as one that nobody touched."""

import random
import time

from tests.trials import programs

GOOD = ("the same bits, killed before the first checkpoint", "the same bits, killed and resumed")
STEPS = ["--steps", "60"]


def trial(number, folder):
    choose, command = random.Random(f"kill {number}"), [*programs.options(number), *STEPS]
    began = time.monotonic()
    whole = programs.start([*command, "--out", "whole"], folder)
    whole.join()
    lasted = time.monotonic() - began
    if whole.exitcode != 0:
        return f"the undisturbed run ended with status {whole.exitcode}"
    resumed = False
    for _ in range(choose.randint(1, 4)):
        one = programs.start(going_on(command, folder), folder)
        time.sleep(choose.uniform(0, lasted))
        one.kill()
        one.join()
        resumed |= (folder / "parts" / "checkpoint.pt").exists()
    last = programs.start(going_on(command, folder), folder)
    last.join()
    if last.exitcode != 0:
        return (
            f"resuming ended with status {last.exitcode}: {programs.said(folder, last).strip()[-200:]}"
        )
    if not programs.same(programs.state(folder / "whole"), programs.state(folder / "parts")):
        return "other bits"
    left = [file.name for file in (folder / "parts").glob("*.partial")]
    return f"left behind: {left}" if left else GOOD[resumed]


def going_on(command, folder):
    """The command line that starts a run, or resumes it if there is something to resume."""
    if (folder / "parts" / "checkpoint.pt").exists():
        return ["train", "--resume", "parts"]
    return [*command, "--out", "parts"]
