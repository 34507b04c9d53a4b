"""The files of a run with flipped bits, cut off, overwritten or swapped: refused, or nothing is lost.

Whatever is resumed has the bits that were saved.
"""

import functools
import os
import random
import shutil
import tempfile
from pathlib import Path

from projunn.training import Run
from tests.trials import programs

GOOD = ("refused with a word", "resumed with the bits that were saved", "the same file")
FILES = ("checkpoint.pt", "checkpoint.pt", "checkpoint.pt", "config.json", "metrics.jsonl")


@functools.cache
def runs():
    """A folder of finished runs of several tasks and seeds, made once."""
    folder = Path(tempfile.mkdtemp())
    for number in range(6):
        process = programs.start(
            [*programs.options(number), "--steps", "8", "--out", str(number)], folder
        )
        process.join()
        assert process.exitcode == 0, programs.said(folder, process)
    return folder


def trial(number, folder):
    choose = random.Random(f"corruption {number}")
    own, other = choose.sample(sorted(f for f in runs().iterdir() if f.is_dir()), 2)
    run, name = folder / "run", choose.choice(FILES)
    shutil.copytree(own, run)
    file = run / name
    before, content = file.read_bytes(), bytearray(file.read_bytes())
    damage(choose, file, content, other / name)
    if file.exists() and file.read_bytes() == before:
        return GOOD[2]
    told = {f.name: f.read_bytes() for f in run.iterdir() if f.is_file()}
    try:
        resumed = Run.resume(run)
    except ValueError as error:
        changed = told != {f.name: f.read_bytes() for f in run.iterdir() if f.is_file()}
        return "a refusal changed the folder" if changed else word(error)
    except Exception as error:
        return f"a bare {type(error).__name__} ({name}): {error}"
    states = {learner.body: learner.state_dict() for learner in resumed.learners}
    return GOOD[1] if programs.same(programs.state(own), states) else f"other bits were resumed ({name})"


def word(error):
    return GOOD[0] if str(error) else "a refusal without a word"


def damage(choose, file, content, other):
    """Damage a file in one of many ways."""
    kind = choose.choice(
        ("bit", "bit", "bits", "cut", "zeros", "noise", "more", "swap", "gone", "empty")
    )
    at = choose.randrange(max(1, len(content)))
    if kind in ("bit", "bits"):
        for _ in range(1 if kind == "bit" else choose.randint(2, 50)):
            content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind in ("zeros", "noise"):
        piece = content[at : at + choose.choice((1, 16, 512))]
        content[at : at + len(piece)] = (
            bytes(len(piece)) if kind == "zeros" else choose.randbytes(len(piece))
        )
    elif kind == "more":
        content += choose.randbytes(choose.choice((1, 100)))
    elif kind == "swap":
        content[:] = other.read_bytes()
    elif kind == "empty":
        content.clear()
    if kind == "gone":
        os.remove(file)
    else:
        file.write_bytes(content)
