"""SIGINT or SIGTERM to ``python -m projunn train`` at any moment from the first line of the program on.

The process ends with a word and the status of the signal, and no traceback; a run that had begun can be
resumed.
"""

import os
import random
import signal
import subprocess
import sys
import time

from tests.trials import programs

GOOD = ("stopped before training", "stopped in training, and resumable")
WORDS = {signal.SIGINT: "projunn: interrupted\n", signal.SIGTERM: "projunn: terminated\n"}
LONGEST = 10.0  # seconds from the first line to the signal; importing takes two to four
# Python imports this by itself.  It tells when it begins to look for the package of the program.
MARKER = """
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "projunn":
            sys.meta_path.remove(self)
            os.write(int(os.environ["FIRST_LINE"]), b"!")

sys.meta_path.insert(0, Finder())
"""


def trial(number, folder):
    choose = random.Random(f"signals {number}")
    wait, which = choose.uniform(0.01, LONGEST), choose.choice((signal.SIGINT, signal.SIGTERM))
    (folder / "sitecustomize.py").write_text(MARKER)
    reading, writing = os.pipe()
    paths = os.pathsep.join([str(folder), *sys.path])
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "projunn",
            *programs.options(number),
            "--steps",
            "10000000",
            "--out",
            "run",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "FIRST_LINE": str(writing), "OMP_NUM_THREADS": "1"},
        pass_fds=(writing,),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a terminal's programs have it: a shell's background ignores it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        os.read(reading, 1)
        time.sleep(wait)
        process.send_signal(which)
        output, errors = process.communicate(timeout=60)
    finally:
        os.close(reading)
        os.close(writing)
        process.kill()  # if it still runs
    when = f"{which.name} {wait:.2f} s after the first line"
    if "Traceback" in output + errors:
        return f"a traceback: {when}"
    if process.returncode != 128 + which:
        return f"status {process.returncode}: {when}: {errors[-200:]}"
    if errors != WORDS[which] and "--resume" not in output:
        return f"no word: {when}: {(output + errors)[-200:]}"
    if not (folder / "run" / "checkpoint.pt").exists():
        return GOOD[0]
    step = next(iter(programs.state(folder / "run").values()))["step"]
    rest = programs.start(["train", "--resume", "run", "--steps", str(step + 3)], folder)
    rest.join()
    return GOOD[1] if rest.exitcode == 0 else f"cannot be resumed: {when}: {programs.said(folder, rest)}"
