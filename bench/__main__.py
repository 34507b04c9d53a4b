"""``python -m bench [NAME ...]``: run benchmarks, print them, append rows to ``bench/results/``."""

import argparse
import importlib

NAMES = ("update", "recurrence", "stability", "drift")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    arguments = parser.parse_args()
    for name in arguments.names or NAMES:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; there are: {', '.join(NAMES)}")
        importlib.import_module(f"bench.bench_{name}").run(quick=arguments.quick)


if __name__ == "__main__":
    main()
