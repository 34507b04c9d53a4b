"""``python -m bench.gpu``, which is ``make gpu``."""

import argparse
import os
import sys
import time
from pathlib import Path

import bench.gpu

_BEGUN = time.monotonic()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=bench.gpu.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    out = os.environ.get("OUT") or "gpu-results"
    parser.add_argument("--out", type=Path, default=Path(out), help="folder that gets the results")
    parser.add_argument("--quick", action="store_true", help="two minutes in place of five")
    parser.add_argument("--peers", type=Path, help="folder of wheels: POGO, geoopt, geotorch")
    parser.add_argument("--published", type=Path, help="folder of the published projUNN code")
    parser.add_argument("--sanitizer", action="store_true", help="small checks under compute-sanitizer")
    parser.add_argument("--only", metavar="A,B", help="these stages, after the machine's")
    parser.add_argument("--workers", type=int, help="processes of checks; default: one a core")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: times mean nothing")
    parser.add_argument("--small-checks", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.dry:  # to be said before triton is imported
        os.environ["TRITON_INTERPRET"] = "1"
    if arguments.peers:
        sys.path += [str(wheel.resolve()) for wheel in sorted(arguments.peers.glob("*.whl"))]
    if arguments.published:
        os.environ["PUBLISHED"] = str(arguments.published.resolve())
    from bench.gpu import driver, stages

    if arguments.small_checks:
        return driver.small_checks(arguments.dry)
    only = arguments.only.split(",") if arguments.only else None
    unknown = set(only or ()) - set(stages.SECONDS)
    if unknown:
        known = ", ".join(stages.SECONDS)
        parser.error(f"--only: got {', '.join(sorted(unknown))}, wanted some of {known}")
    return driver.Driver(
        arguments.out,
        dry=arguments.dry,
        quick=arguments.quick,
        workers=arguments.workers,
        only=only,
        sanitizer=arguments.sanitizer,
        begun=_BEGUN,
    ).run()


if __name__ == "__main__":
    sys.exit(main())
