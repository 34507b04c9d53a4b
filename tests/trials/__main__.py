"""``python -m tests.trials NAME``: so many trials of a kind, and how many ended how."""

import argparse
import importlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

NAMES = ("kill", "signals", "corruption", "races")


def run(name, count, start=0):
    """Run trials; print how many ended how.  Returns whether all ended well."""
    kind, ends, began = importlib.import_module(f"tests.trials.{name}"), Counter(), time.monotonic()
    for number in range(start, start + count):
        with tempfile.TemporaryDirectory() as folder:
            end = kind.trial(number, Path(folder))
        ends[end] += 1
        if end not in kind.GOOD:
            print(f"{name} {number}: {end}", flush=True)
    bad = sum(many for end, many in ends.items() if end not in kind.GOOD)
    print(f"{name}: {count} trials in {time.monotonic() - began:.0f} s, {bad} of them bad")
    for end, many in ends.most_common():
        print(f"{many:6}  {end}")
    return not bad


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.trials", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--start", type=int, default=0, help="the number of the first trial")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return int(not run(arguments.name, arguments.count, arguments.start))


if __name__ == "__main__":
    sys.exit(main())
