"""Runs many cases, in processes of one thread each."""

import os
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch

from tests.fuzz.run import told

_CHUNK = 25  # cases that a process gets at once


def run(cases, processes):
    """Run cases; print counts, and the lines of violations.  Returns whether all ran and none broke."""
    started, lines, done = time.monotonic(), [], Counter()
    chunks = [cases[i : i + _CHUNK] for i in range(0, len(cases), _CHUNK)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
                waiting = {pool.submit(_work, chunk, folder): chunk for chunk in chunks}
                for ready in as_completed(waiting):
                    for line in ready.result():
                        print(line, flush=True)
                        lines.append(line)
                    done.update(family for family, _ in waiting[ready])
        except BrokenProcessPool:
            running = sorted(note.read_text() for note in Path(folder).iterdir())
            lines += [f"{case}: a process died in this case or in another of these" for case in running]
    broken = Counter(line.split()[0] for line in lines)
    print(f"\n{'family':14}{'cases':>8}{'violations':>12}")
    for family in dict.fromkeys(family for family, _ in cases):
        print(f"{family:14}{done[family]:8}{broken[family]:12}")
    print(f"{'all':14}{done.total():8}{len(lines):12}  in {time.monotonic() - started:.0f} s")
    if lines:
        print("\nTo repeat one: python -m tests.fuzz FAMILY SEED, of")
        print("\n".join(sorted(line.split(":")[0] for line in lines)))
    return not lines and done.total() == len(cases)


def _work(cases, folder):
    """The lines of the violations among some cases.  A file of this process says which case runs."""
    torch.set_num_threads(1)
    note, lines = Path(folder) / str(os.getpid()), []
    for family, seed in cases:
        note.write_text(f"{family} {seed}")
        if line := told(family, seed):
            lines.append(line)
    note.unlink()
    return lines
