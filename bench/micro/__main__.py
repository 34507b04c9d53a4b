"""``python -m bench.micro``: run the micro benchmarks, save the times, compare with the last run."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STORAGE = ROOT / ".benchmarks"


def options(storage: Path) -> list[str]:
    """The options of pytest-benchmark; those that compare only where a run was saved before."""
    chosen = [
        f"--benchmark-storage=file://{storage}",
        "--benchmark-autosave",
        "--benchmark-disable-gc",
        "--benchmark-warmup=on",
        "--benchmark-warmup-iterations=2",
        "--benchmark-columns=median,iqr,rounds",
        "--benchmark-name=short",
        "--benchmark-sort=name",
    ]
    return [*chosen, "--benchmark-compare"] if any(storage.glob("*/*.json")) else chosen


def main() -> int:
    arguments = ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    return pytest.main([str(Path(__file__).parent), *arguments, *options(STORAGE), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
