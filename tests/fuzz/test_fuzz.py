"""A short run of the fuzzer, and every case that once was a violation."""

from pathlib import Path

import pytest

from tests.fuzz.run import FAMILIES, spread, told

CASES = list(spread(300))
# Lines "family seed  # what was wrong"; they are true as long as the family draws what it drew then.
FOUND = [line.split()[:2] for line in (Path(__file__).parent / "found.txt").read_text().splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_promise_is_broken_by_a_few_hundred_cases(family):
    lines = [told(name, seed) for name, seed in CASES if name == family]
    assert lines
    assert not any(lines), "\n".join(filter(None, lines))


@pytest.mark.parametrize("family", sorted({family for family, _ in FOUND}))
def test_what_was_once_a_violation_is_none_any_more(family):
    lines = [told(name, int(seed)) for name, seed in FOUND if name == family]
    assert not any(lines), "\n".join(filter(None, lines))
