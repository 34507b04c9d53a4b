"""What the figures are to be, as data; each target finds its rows by their names.

A target compares a field of one row with that of another, as a ratio, or with a number.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.gpu import convolution, host, linear, recurrence, training, update
from bench.gpu.case import Row

SIZES = (1024, 2048, 4096, 8192, 16384)
RUN_SECONDS = {False: 300.0, True: 120.0}  # of a whole run, a quick one


@dataclass(frozen=True)
class Target:
    """``own`` over ``peer``, or ``own`` alone, against ``bound``.

    Attributes:
        group: targets of one group share a line of the summary.
        label: what tells it from the others of the group.
        own, peer: names of rows.
        field: of the rows.
        least: the bound is the least value that will do, not the largest.
    """

    group: str
    label: str
    own: str
    bound: float
    peer: str | None = None
    field: str = "ms"
    least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.bound if self.least else value <= self.bound


def targets(quick: bool = False) -> list[Target]:
    """All targets, those of the whole run first."""
    run = [
        Target("tests that failed", "", "tests", 0, field="failed"),
        Target("checks that failed", "", "checks", 0, field="failed"),
        Target("seconds of the run", "", "run", RUN_SECONDS[quick], field="seconds"),
    ]
    return [*run, *_gradients(), *_host(), *_update(), *_linear(), *_recurrence(), *_convolution()]


def judged(rows: Iterable[Row], quick: bool = False) -> list[Row]:
    """A row for every target: its value and ``verdict``, met, missed or not run, with the reason."""
    known = {row["name"]: row for row in rows}
    known |= {row["name"]: row for row in _of_the_limit(known)}
    found = []
    for target in targets(quick):
        value, lacking, why = _value(target, known)
        verdict = "not run" if value is None else "met" if target.met(value) else "missed"
        row: Row = {"stage": "targets", "group": target.group, "label": target.label}
        row |= {"name": f"{target.group} {target.label}".strip(), "own": target.own, "peer": target.peer}
        row |= {"bound": target.bound, "least": target.least, "verdict": verdict}
        row |= {"value": None if value is None else round(value, 4), "lacking": lacking, "why": why}
        own = known.get(target.own, {})
        found.append(row | {"ms": own.get("ms") if target.field == "ms" else None})
    return found


def _value(target: Target, known: Mapping[str, Row]) -> tuple[float | None, str, str]:
    """The value; or None, the name of the row that it lacks, and why."""
    values = []
    for name in (target.own, target.peer) if target.peer else (target.own,):
        row = known.get(name)
        if row is None:
            return None, name, "not come to"
        if row.get(target.field) is None:
            return None, name, row.get("absent") or row.get("problem") or f"no {target.field}"
        values.append(float(row[target.field]))
    if len(values) == 1:
        return values[0], "", ""
    return (values[0] / values[1], "", "") if values[1] else (None, str(target.peer), "it took no time")


def _gradients() -> list[Target]:
    """States and gradients of the time loop, by the error that is allowed."""
    return [
        Target(
            "RNN gradients, T = 50, of the error allowed",
            f"{n} {nonlinearity}{' complex' if pairs else ''}",
            recurrence.check_name(n, pairs, nonlinearity, 50),
            1.0,
            field="share",
        )
        for n in recurrence.LONG
        for pairs, nonlinearity in ((False, "relu"), (False, "modrelu"), (True, "modrelu"))
    ]


def _host() -> list[Target]:
    bounds = {"SGD 1024": 60.0, "AdamW 1024": 60.0, "SGD 20 of 256": 100.0, "SGD 20 of 64": 100.0}
    return [
        Target("us to issue an optimizer step", what, host.name(what), bound, field="issue_us")
        for what, bound in bounds.items()
    ]


def _short(shape: tuple[int, ...], dtype: str) -> str:
    size = str(shape[0]) if len(shape) == 2 else "x".join(map(str, shape[:2]))
    return size + ("c" if dtype == "complex64" else "")


def _update() -> list[Target]:
    found = []
    shapes = [*((n, n) for n in SIZES), *update.BANKS]
    subjects = [(shape, dtype) for dtype in ("float32", "complex64") for shape in shapes]
    for group, what, bound in (
        ("SGD, no polish / torch.optim.SGD, captured", "SGD k1 no polish", 1.0),
        ("SGD / torch.optim.SGD, captured", "SGD k1", 1.02),
    ):
        for subject in subjects:
            own, peer = update.name(what, *subject), update.name("torch.optim.SGD", *subject)
            found.append(Target(group, _short(*subject), own, bound, peer))
    for subject in update.SINGLE:
        own, peer = update.name("SGD single pass", *subject), update.name("torch.optim.SGD", *subject)
        group = "SGD, single pass, no polish / torch.optim.SGD, captured"
        found.append(Target(group, _short(*subject), own, 1.0, peer))
    for subject in subjects:
        own, peer = update.name("SGD k1", *subject), update.name("SGD k1 no polish", *subject)
        found.append(Target("SGD / SGD without polish", _short(*subject), own, 1.02, peer))
    for subject in update.ADAM:
        own, peer = update.name("AdamW k1", *subject), update.name("torch.optim.AdamW fused", *subject)
        found.append(Target("AdamW / torch.optim.AdamW fused", _short(*subject), own, 1.0, peer))
    for subject in update.RANKED:
        for k, bound in ((4, 2.0),) if len(subject[0]) == 3 else ((4, 1.5), (16, 3.0), (64, 8.0)):
            own, peer = update.name(f"SGD k{k}", *subject), update.name("SGD k1", *subject)
            found.append(Target(f"rank {k} / rank 1", _short(*subject), own, bound, peer))
    return sorted(found, key=lambda target: target.group.startswith("rank"))


def _linear() -> list[Target]:
    found = []
    for n, rows in sorted(linear.SIZES):
        for way, bound in (
            ("eager", 1.2 if n == 1024 else 1.0),
            ("graph", 0.95 if n == 1024 else 0.7 if n >= 4096 and rows == 4096 else None),
        ):
            if bound is not None:
                own, peer = (
                    linear.name(what, n, rows, "highest", way) for what in (linear.SKETCHED, linear.PEER)
                )
                group = f"sketched linear step (n, rows) / nn.Linear + SGD, {way}"
                found.append(Target(group, f"({n}, {rows})", own, bound, peer))
    return sorted(found, key=lambda target: target.group)


def _recurrence() -> list[Target]:
    found = []

    def add(group: str, units: int, own: str, bound: float, peer: str, least: bool = False) -> None:
        found.append(Target(group, str(units), own, bound, peer, least=least))

    ours, cudnn = recurrence.OURS, recurrence.CUDNN
    name = recurrence.name
    for precision in ("highest", "high"):
        for units in sorted(recurrence.UNITS):
            bound = 1.2 if units >= 512 else 1.0
            peer = name(cudnn, units, "relu", precision, "graph")
            own = name(ours, units, "relu", precision, "graph")
            add(f"RNN step / cuDNN relu, {precision}, graph", units, own, bound, peer)
    for kind in ("modrelu", "complex modrelu"):
        for units in sorted(recurrence.UNITS):
            bound = 2.5 * (1.2 if units >= 512 else 1.0)
            peer = name(cudnn, units, "relu", "high", "graph")
            own = name(ours, units, kind, "high", "graph")
            add(f"RNN {kind} step / cuDNN relu, high, graph", units, own, bound, peer)
    for units in sorted(recurrence.UNITS):
        own, peer = (name(ours, units, "relu", "high", way) for way in ("eager", "graph"))
        add("RNN step, eager / graph", units, own, 1.1, peer)
    published = name(recurrence.PUBLISHED, 190, "relu", "high", "eager")
    own = name(ours, 190, "relu", "high", "graph")
    add("published loop / RNN step", 190, published, 50.0, own, least=True)
    rate = Target("steps a second", training.NAME, training.NAME, 150.0, field="steps_per_s", least=True)
    return [*found, rate]


def _convolution() -> list[Target]:
    found = []
    name = convolution.name
    for precision, bound in (("high", 1.0), ("highest", 0.5)):
        for layer in convolution.LAYERS:
            own, peer = (name(what, layer, precision) for what in (convolution.OURS, convolution.CUDNN))
            group = f"conv layer / cuDNN 3x3, {precision}"
            found.append(Target(group, "{}-{}@{}".format(*layer), own, bound, peer))
    for layer in convolution.LAYERS:
        if layer[0] == layer[1]:
            own = name(convolution.OURS, layer, "highest")
            peer = name(convolution.PUBLISHED, layer, "highest", "eager")
            found.append(Target("conv layer / published", "{}-{}@{}".format(*layer), own, 0.3, peer))
    for precision, compiled in convolution.NETWORKS:
        own, peer = (
            convolution.network_name(conv, precision, compiled) for conv in ("unitary", "plain")
        )
        label = f"{precision} {'compiled' if compiled else 'eager'}"
        found.append(Target("ResNet9 step / plain net's", label, own, 1.3, peer))
    for what, layer, precision in convolution.part_cases():
        own = convolution.part_name(what, layer, precision)
        label = f"{what.removeprefix('spectral ')} {layer[0]}@{layer[2]} {precision}"
        kind = "products" if what.startswith("spectral") else "transforms"
        group = f"spectral {kind}, of what the device can do"
        found.append(
            Target(group, label, f"{own}, of the limit", 0.6, field="share_of_limit", least=True)
        )
    return found


def _of_the_limit(known: Mapping[str, Row]) -> list[Row]:
    """The larger of a part's shares of a copy's bandwidth and of a matrix product's rate."""
    found = []
    for what, layer, precision in convolution.part_cases():
        names = (
            convolution.part_name(what, layer, precision),
            convolution.copy_name(what, layer),
            convolution.matrix_product_name(precision),
        )
        rows = [known.get(name, {}) for name in names]
        row: Row = {"name": f"{names[0]}, of the limit"}
        if all(r.get("ms") for r in rows):
            own, copy, dense = rows
            bandwidth = copy["ms"] / own["ms"]
            arithmetic = own["flops"] / own["ms"] * dense["ms"] / dense["flops"]
            row |= {"share_of_limit": max(bandwidth, arithmetic)}
        else:
            lacking = next(n for n, r in zip(names, rows, strict=True) if not r.get("ms"))
            row |= {"problem": known.get(lacking, {}).get("problem") or "not come to"}
        found.append(row)
    return found
