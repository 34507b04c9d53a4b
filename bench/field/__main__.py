"""``python -m bench.field [CASE ...]``: train what is not done yet, then print tables and draw."""

import argparse
from pathlib import Path

import torch

from bench.field import report
from bench.field.cases import CASES
from bench.field.protocol import Comparison
from bench.records import FOLDER, Results


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.field", description="Compare methods at equal budgets (docs/protocol.md)."
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of {', '.join(CASES)}; or none")
    parser.add_argument(
        "--methods", nargs="+", default=[], metavar="NAME", help="names, or parts of some"
    )
    parser.add_argument("--seconds", type=float, metavar="X", help="of CPU time for each training")
    parser.add_argument("--pace", action="store_true", help="measure the seconds of a step again")
    parser.add_argument("--data", type=Path, metavar="FILE", help="images for the cases of MNIST")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of rows and pictures")
    parser.add_argument("--no-draw", action="store_true", help="rows only")
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in CASES:
            parser.error(f"no case {name!r}; there are: {', '.join(CASES)}")
        if CASES[name].images and arguments.data is None:
            parser.error(f"{name}: give the file of images by --data")
    torch.set_num_threads(1)
    comparison = Comparison(
        Results(arguments.results),
        [CASES[name] for name in arguments.cases],
        seconds=arguments.seconds,
        data=arguments.data,
    )
    if arguments.pace:
        comparison.pace()
    comparison.run(arguments.methods)
    if arguments.no_draw:
        return
    print(report.tables(arguments.results, seconds=arguments.seconds))
    for path in report.write(arguments.results):
        print(path)


if __name__ == "__main__":
    main()
