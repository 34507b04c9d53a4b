"""``python -m tests.fuzz``: many cases in as many processes as there are cores, or one case again."""

import argparse
import os
import sys

from tests.fuzz import many
from tests.fuzz.run import FAMILIES, spread, told


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "family", nargs="?", choices=tuple(FAMILIES), help="default: all, by their shares"
    )
    parser.add_argument("seed", nargs="?", type=int, help="run this case alone, with its traceback")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.seed is not None:
        line = told(arguments.family, arguments.seed, trace=True)
        print(line or f"{arguments.family} {arguments.seed}: no violation")
        return int(line is not None)
    first, count = arguments.start, arguments.cases
    cases = list(spread(count, first))
    if arguments.family is not None:
        cases = [(arguments.family, seed) for seed in range(first, first + count)]
    return int(not many.run(cases, arguments.processes))


if __name__ == "__main__":
    sys.exit(main())
