"""One page from which a reader can judge a run, and the table of all targets."""

import textwrap
from collections import Counter
from collections.abc import Iterable

from bench.gpu.case import Row

LINES, CHARACTERS, WIDTH = 60, 12_000, 198
NAMED = 10  # failures that are named in full, if there is room for them


_SPACE = "\N{NO-BREAK SPACE}"


def page(machine: Row, rows: list[Row], targets: list[Row], seconds: float) -> str:
    """At most `LINES` lines and `CHARACTERS` characters.

    Failures are named in full, as many as there is room for.

    Args:
        machine: what the run's first stage found.
        rows: of all stages.
        targets: `bench.gpu.targets.judged`.
        seconds: that the run took.
    """
    for named in range(NAMED, 0, -1):
        lines = _lines(machine, rows, targets, seconds, named)
        if len(lines) <= LINES:
            break
    if len(lines) > LINES:
        lines = [
            *lines[: LINES - 1],
            f"... {len(lines) - LINES + 1} lines more: rows.jsonl has them all",
        ]
    text = "\n".join(line[:WIDTH] for line in lines) + "\n"
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 5].rsplit("\n", 1)[0] + "\n...\n"


def _lines(machine: Row, rows: list[Row], targets: list[Row], seconds: float, named: int) -> list[str]:
    by_stage: dict[str, list[Row]] = {}
    for row in rows:
        by_stage.setdefault(row["stage"], []).append(row)
    return [
        *_machine(machine, seconds),
        *_stages(by_stage.get("run", [])),
        *_verdicts("tests", by_stage.get("tests", []), named),
        *_verdicts("checks", by_stage.get("checks", []), named),
        *_missing(rows, named),
        *_targets(targets),
        *_peers(by_stage.get("update", [])),
        *_host(by_stage.get("host", [])),
        *_tuning(by_stage.get("tune", [])),
        *_profile(by_stage.get("profile", [])),
    ]


def table(targets: Iterable[Row]) -> str:
    """All targets, one a line."""
    lines = ["== targets"]
    for row in targets:
        value = "-" if row["value"] is None else f"{row['value']:.4g}"
        sense = ">=" if row["least"] else "<="
        reason = f": {row['lacking']}: {row['why']}" if row["why"] else ""
        verdict = f"{row['verdict']}{reason}"[:200]
        lines.append(f"{row['name']:<78} {value:>9} {sense} {row['bound']:<6g} {verdict}")
    return "\n".join(lines) + "\n"


def _machine(machine: Row, seconds: float) -> list[str]:
    m = machine.get
    return [
        f"make gpu: {m('gpu')} ({m('capability')}, {m('memory_gib')} GiB), {m('cores')} x {m('cpu')}",
        f"torch {m('torch')}, triton {m('triton')}, Python {m('python')}; commit {m('commit')};"
        f" {m('date')}; {seconds:.0f} s in all",
    ]


def _wrapped(title: str, items: Iterable[str], separator: str = "; ", indent: int = 9) -> list[str]:
    """Items after a title, over as many lines as they take, none of them broken; none without items."""
    text = separator.join(item.replace(" ", _SPACE) for item in items)
    if not text:
        return []
    options = {"initial_indent": f"{title:<{indent}}", "subsequent_indent": " " * indent}
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False, **options)
    return [line.replace(_SPACE, " ") for line in lines]


def _stages(rows: list[Row]) -> list[str]:
    words = [f"{r['name'].removeprefix('stage ')} {r['seconds']:.0f} s: {r['outcome']}" for r in rows]
    return _wrapped("stages", (word[:150] for word in words), " | ")


def _verdicts(title: str, rows: list[Row], named: int) -> list[str]:
    """How many ran of each kind, and the failures by name."""
    if not rows:
        return [f"{title:<9}not run"]
    failed = [row for row in rows if row["problem"] and not row.get("cut")]
    skipped = sum(row.get("outcome") == "skipped" for row in rows)
    cut = [row["name"] for row in rows if row.get("cut")]
    passed = len(rows) - len(failed) - len(cut) - skipped
    found = [f"{title:<9}{passed} passed, {len(failed)} FAILED, {len(cut)} cut, {skipped} skipped"]
    if title == "checks":
        families: dict[str, list[bool]] = {}
        for row in rows:
            if not row.get("cut"):
                words = row.get("kind", row["name"]).split()
                family = " ".join(words[:2]) if words[0] in ("time", "rank") else words[0]
                families.setdefault(family, []).append(not row["problem"])
        counts = (f"{family} {sum(passes)}/{len(passes)}" for family, passes in families.items())
        found += _wrapped("", counts, ", ")
    found += [f"  FAILED {row['name']}: {row['problem']}"[:150] for row in failed[:named]]
    if len(failed) > named:
        names = ", ".join(row["name"] for row in failed[named:])
        found.append(f"  and {len(failed) - named} more: {names}")
    return found


def _missing(rows: list[Row], named: int) -> list[str]:
    """What the machine lacks, each once; and the measurements that failed."""
    lacking = dict.fromkeys(row["absent"] for row in rows if "absent" in row)
    failed = [
        f"{row['name']} ({row['problem'][:60]})"
        for row in rows
        if row["stage"] not in ("tests", "checks", "run") and row.get("problem") and not row.get("cut")
    ]
    shown = failed[:named] + ([f"and {len(failed) - named} more"] if len(failed) > named else [])
    return [*_wrapped("missing", lacking), *_wrapped("not timed", shown)]


def _targets(rows: list[Row]) -> list[str]:
    """A line or two a group: label, value, and our time where the value is a ratio of times."""
    counts = Counter(row["verdict"] for row in rows)
    reasons = Counter(row["why"][:60] for row in rows if row["why"]).most_common(4)
    text = f"{counts['met']} met, {counts['missed']} missed (*), {counts['not run']} not run (-)"
    found = [f"targets  {text} of {len(rows)}"]
    if reasons:
        found[0] += "; not run: " + ", ".join(f"{count} {reason}" for reason, count in reasons)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    single = [own[0] for own in groups.values() if len(own) == 1 and own[0]["ms"] is None]
    found += _wrapped("  ", (f"{r['group']} {_bound([r])}: {_value(r)}" for r in single), "; ", 2)
    for group, own in groups.items():
        if own[0] not in single:
            items = [f"{group} {_bound(own)}:", *(_value(row) for row in own)]
            found += _wrapped("  ", items, "  ", 4)
    return found


def _bound(rows: list[Row]) -> str:
    bounds = sorted({row["bound"] for row in rows})
    ends = dict.fromkeys((bounds[0], bounds[-1]))
    return (">= " if rows[0]["least"] else "<= ") + " to ".join(f"{bound:g}" for bound in ends)


def _value(row: Row) -> str:
    label = f"{row['label']} " if row["label"] else ""
    if row["value"] is None:
        return f"{label}-"
    star = "*" if row["verdict"] == "missed" else ""
    return f"{label}{star}{row['value']:.3g}" + (f" ({_time(row['ms'])})" if row["ms"] else "")


def _time(ms: float) -> str:
    return f"{1e3 * ms:.3g}us" if ms < 1 else f"{ms:.3g}ms"


def _peers(rows: list[Row]) -> list[str]:
    """Eager steps of ours and of others on the same weight."""
    timed: dict[str, list[str]] = {}
    for row in rows:
        if row.get("way") == "eager" and "ms" in row:
            subject = f"{row['shape']} {row['dtype']}"
            timed.setdefault(subject, []).append(f"{row['what']} {_time(row['ms'])}")
    words = (f"{subject}: {', '.join(own)}" for subject, own in timed.items())
    return _wrapped("eager", words)


def _host(rows: list[Row]) -> list[str]:
    timed = [row for row in rows if "issue_us" in row]
    words = (f"{row['what']} {row['issue_us']:.0f}/{row['total_us']:.0f}" for row in timed)
    return _wrapped("host us", words, ", ")


def _tuning(rows: list[Row]) -> list[str]:
    tuned = [row for row in rows if "gain" in row]
    if not tuned:
        return []
    near = sum(row["gain"] < 0.02 for row in tuned)
    best = sorted(tuned, key=lambda row: -row["gain"])[:5]
    words = [f"closed form within 2 % of the best in {near} of {len(tuned)} buckets"]
    words += [f"{row['name']} {100 * row['gain']:.0f} %" for row in best if row["gain"] >= 0.02]
    return _wrapped("tuning", words, ", ")


def _profile(rows: list[Row]) -> list[str]:
    """Launches and microseconds of a step, and the kernel that takes longest with its own."""
    words = []
    for row in rows:
        if row.get("kernels"):
            first = row["kernels"][0]
            name = row["name"].removesuffix(", profile")
            words.append(
                f"{name}: {row['launches']:g} x, {row['device_us']:.0f} us,"
                f" {first['kernel'][:28]} {first['us']:.0f}"
            )
    return _wrapped("launches", words)
