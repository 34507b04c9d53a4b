"""Comparisons at equal budgets: who starts where, what is trained, repeated and reported."""

import json
import sys
import time
from dataclasses import replace

import numpy
import pytest
import torch

from bench import bench_field
from bench.field import choices, convolutions, matrices, pace, protocol, recurrent, report, trial
from bench.field.cases import CASES
from bench.field.contender import Contender
from bench.field.protocol import Comparison
from bench.records import Results
from projunn.models import EURNN
from tests.dense import defect

TINY = {"length": 12, "hidden": 8, "batch_size": 4}
COPYING = replace(CASES["copying-200"], name="tiny", options=TINY)
PEERS = {"POGO": "pogo", "geoopt": "geoopt", "orthogonium": "orthogonium"}


@pytest.fixture
def table_of_cases(monkeypatch):
    """Reports know the tiny case, and nothing else."""

    def set_to(case):
        monkeypatch.setattr(report, "CASES", {case.name: case})
        return case

    return set_to


@pytest.mark.parametrize(
    ("case", "contender"),
    [
        *((COPYING, c) for c in (*recurrent.CONTENDERS, *choices.CONTENDERS)),
        *((replace(CASES["unitary"], options={"size": 64}), c) for c in matrices.CONTENDERS),
        *((replace(CASES["images-digits"], options={"width": 4}), c) for c in convolutions.CONTENDERS),
    ],
    ids=lambda one: getattr(one, "name", None),
)
def test_every_method_trains_and_what_is_to_be_orthogonal_stays_so(case, contender):
    if contender.name in PEERS:
        pytest.importorskip(PEERS[contender.name])
    if case.task == "images":
        pytest.importorskip("sklearn")
    row = trial.train(case, contender, contender.rates[0], seed=0, steps=3)
    steps, seconds, loss, _ = row["curve"][-1]
    assert steps == row["steps"] == 3
    assert seconds > 0
    assert loss == row["loss"] is not None
    assert row["curve"][0][:2] == [0, 0.0]
    if row["defect"] is not None and contender.name not in ("Muon", "unconstrained"):
        assert row["defect"] < (0.1 if contender.name == "POGO" else 1e-5)


def test_a_case_says_how_many_points_its_curves_have():
    frozen = next(one for one in recurrent.CONTENDERS if one.name == "frozen matrix")
    row = trial.train(replace(COPYING, points=3), frozen, frozen.rates[0], seed=0, steps=10)
    assert [steps for steps, _, _, _ in row["curve"]] == [0, 3, 7, 10]
    row = trial.train(replace(COPYING, points=3), frozen, frozen.rates[0], seed=0, steps=2)
    assert [steps for steps, _, _, _ in row["curve"]] == [0, 1, 2]


@pytest.mark.parametrize("initial", ["henaff", "cayley"])
@pytest.mark.parametrize("kind", ["matrix_exp", "cayley"])
def test_the_maps_start_as_rotations_of_pairs(kind, initial):
    torch.manual_seed(1)
    matrix = recurrent.Mapped(10, kind, initial)
    w = matrix().detach() * matrix.signs
    assert defect(w) < 1e-6
    torch.manual_seed(1)
    torch.nn.Linear(10, 10, bias=False)  # which draws numbers too
    for block in range(5):
        pair = slice(2 * block, 2 * block + 2)
        w[pair, pair] = 0
    assert w.abs().max() < 1e-6
    assert (matrix.signs < 0).sum() == (5 if kind == "cayley" else 0)


def test_all_recurrent_networks_have_the_network_of_ours():
    """With the same weights a `DenseRNN` puts out what our layer does."""
    task = COPYING.make(0)
    ours, _ = recurrent.ours(task, 1e-4, 1, "exp")
    held = recurrent.Held(torch.nn.Parameter(ours.body.weight_hh_l0.detach().clone()))
    dense = recurrent._dense(task, held)
    with torch.no_grad():
        dense.body.enter.weight.copy_(ours.body.weight_ih_l0)
        dense.body.enter.bias.copy_(ours.body.bias_ih_l0)
        dense.body.modrelu_bias.copy_(ours.body.modrelu_bias_l0)
        dense.readout.load_state_dict(ours.readout.state_dict())
    x, _ = task.batch(torch.Generator())
    torch.testing.assert_close(dense(x), ours(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_network_with_the_formed_matrix_of_an_eunn_is_the_one_of_its_rotations(dtype):
    matrix = recurrent.Rotated(8, 3, dtype)
    formed = recurrent.DenseRNN(2, 8, "modrelu", matrix, dtype.is_complex)
    rotated = EURNN(2, 8, 3, dtype=dtype)
    rotated.rotations.load_state_dict(matrix.layer.state_dict())
    rotated.enter.load_state_dict(formed.enter.state_dict())
    rotated.modrelu_bias.data.copy_(formed.modrelu_bias)
    x = torch.randn(6, 3, 2)
    torch.testing.assert_close(formed(x), rotated(x))


def test_all_methods_see_the_same_batches(monkeypatch):
    seen, kind = [], type(COPYING.make(0))
    original = kind.batch

    def note(self, generator):
        batch = original(self, generator)
        seen.append(batch[1].sum().item())
        return batch

    monkeypatch.setattr(kind, "batch", note)
    streams = set()
    for name in ("LSTM", "EUNN, 8 layers", "projUNN-T, k = 1"):
        (contender,) = (c for c in recurrent.CONTENDERS if c.name == name)
        seen.clear()
        trial.train(COPYING, contender, contender.rates[0], seed=1, steps=5)
        streams.add(tuple(seen))
    ((*stream,),) = streams
    assert len(set(stream)) > 1


@pytest.fixture
def recorded(monkeypatch):
    """Trainings are looked up, and listed: the second rate is best with the first seed.

    A step of any method takes a tenth of a second.
    """
    calls = []

    def train(case, contender, rate, seed, steps, data=None):
        calls.append((contender.name, rate, seed))
        loss = {1.0: 0.5, 2.0: 0.25, 3.0: None}[rate] if seed == 0 else 0.5 + seed
        curve = [[0, 0.0, 2.0, None], [steps, 7.0, loss, None]]
        return {
            "steps": steps,
            "seconds": 7.0,
            "loss": loss,
            "accuracy": None,
            "naive": 1.0,
            "defect": None,
            "curve": curve,
        }

    def measure(case, contenders, data=None):
        names = [one.name for one in contenders]
        missing = {n: "absent_package is not installed" for n in names if n == "absent"}
        return {name: 0.1 for name in names if name not in missing}, missing

    monkeypatch.setattr(protocol, "train", train)
    monkeypatch.setattr(pace, "measure", measure)
    return calls


def method(name, rates=(1.0, 2.0, 3.0)):
    return Contender(name, lambda task, rate: None, rates, "#000000")


def test_trials_choose_the_rate_and_other_seeds_follow(recorded, tmp_path):
    case = replace(COPYING, contenders=(method("a"),))
    Comparison(Results(tmp_path), [case], seconds=1.0).run()
    assert recorded == [("a", 1.0, 0), ("a", 2.0, 0), ("a", 3.0, 0), ("a", 2.0, 1), ("a", 2.0, 2)]


def test_what_has_a_row_is_not_trained_again(recorded, tmp_path):
    case = replace(COPYING, contenders=(method("a"), method("b")))
    Comparison(Results(tmp_path), [replace(case, seeds=1)], seconds=1.0).run(("a",))
    first = list(recorded)
    Comparison(Results(tmp_path), [case], seconds=1.0).run()
    assert len(recorded) == len(set(recorded)) == 10
    assert recorded[: len(first)] == first
    Comparison(Results(tmp_path), [case], seconds=2.0).run(("a",))  # another budget is another row
    assert len(recorded) == 15
    rows = [json.loads(line) for line in (tmp_path / "field.jsonl").read_text().splitlines()]
    assert all({"commit", "cpu", "torch", "threads", "protocol", "case"} <= set(row) for row in rows)


def test_a_method_that_is_not_installed_is_reported_as_missing(recorded, tmp_path, capsys):
    case = replace(COPYING, contenders=(method("absent"), method("a")))
    comparison = Comparison(Results(tmp_path), [case], seconds=1.0)
    comparison.run()
    assert comparison.missing == {"absent": "absent_package is not installed"}
    assert "absent is left out: absent_package is not installed" in capsys.readouterr().out
    assert {name for name, _, _ in recorded} == {"a"}


@pytest.mark.draws
@pytest.mark.requires("matplotlib")
def test_tables_have_no_number_of_what_was_not_run(recorded, tmp_path, table_of_cases):
    case = table_of_cases(replace(COPYING, contenders=(method("a"), method("b"), method("c"))))
    Comparison(Results(tmp_path), [case], seconds=1.0).run(("a",))
    Comparison(Results(tmp_path), [replace(case, seeds=1)], seconds=1.0).run(("b",))  # one seed only
    Comparison(Results(tmp_path), [case], seconds=0.5).run(("c",))  # a smaller budget
    text = report.tables(tmp_path, seconds=1.0)
    assert "| a | 2 | 1.42 (0.25 to 2.5) |" in text
    assert "| b |" not in text
    assert "| c |" not in text
    (picture,) = report.draw(tmp_path, seconds=1.0)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.requires("matplotlib")
def test_the_short_form_repeats_what_it_has_rows_of(
    recorded, tmp_path, table_of_cases, capsys, monkeypatch
):
    case = table_of_cases(replace(COPYING, contenders=(method("a"),)))
    monkeypatch.setattr(bench_field, "CASES", {"tiny": case})
    monkeypatch.setattr(bench_field, "SHORT", ("tiny",))
    bench_field.run(Results(tmp_path, quick=True), quick=True)
    assert len(recorded) == 5
    assert "| a | 2 |" in capsys.readouterr().out
    time.sleep(1.1)  # dates are whole seconds
    bench_field.run(Results(tmp_path, quick=True), quick=True)
    assert len(recorded) == 10
    assert (tmp_path / "field-tiny-short.png").exists()


def test_a_budget_is_as_many_steps_as_the_pace_allows(tmp_path, monkeypatch):
    taken = []

    def train(case, contender, rate, seed, steps, data=None):
        taken.append((contender.name, steps))
        raise ModuleNotFoundError(name="gone")

    monkeypatch.setattr(protocol, "train", train)
    paces = {"slow": 0.5, "fast": 0.01}
    monkeypatch.setattr(pace, "measure", lambda *_: (dict(paces), {}))
    case = replace(COPYING, contenders=(method("slow"), method("fast")), seconds=3.0)
    Comparison(Results(tmp_path), [case]).run()
    assert taken == [("slow", 6), ("fast", 300)]
    paces |= {"slow": 1.0, "fast": 0.02, "new": 0.04}  # a machine of half the speed
    case = replace(case, contenders=(*case.contenders, method("new")))
    Comparison(Results(tmp_path), [case]).run()
    assert taken[2:] == [("slow", 6), ("fast", 300), ("new", 150)]


def test_a_method_of_a_case_that_takes_over_rates_is_trained_once_at_that_rate(
    recorded, tmp_path, monkeypatch, capsys
):
    tried = replace(COPYING, contenders=(method("a"),), seconds=1.0)
    longer = replace(
        tried, name="longer", contenders=(method("a"), method("b")), seeds=1, rates_of="tiny"
    )
    monkeypatch.setattr(protocol, "CASES", {"tiny": tried, "longer": longer})
    Comparison(Results(tmp_path), [tried]).run()
    recorded.clear()
    Comparison(Results(tmp_path), [longer], seconds=9.0).run()
    assert recorded == [("a", 2.0, 0)]
    assert "b is left out: it has no rate from tiny" in capsys.readouterr().out


def test_a_pace_is_the_seconds_of_a_step_and_what_is_missing_has_none(monkeypatch):
    monkeypatch.setattr(pace, "_VISIT", 0.01)
    (lstm,) = (c for c in recurrent.CONTENDERS if c.name == "LSTM")

    def absent(task, rate):
        raise ModuleNotFoundError(name="absent_package")

    contenders = (lstm, replace(lstm, name="absent", make=absent))
    paces, missing = pace.measure(COPYING, contenders, rounds=2)
    assert 0 < paces["LSTM"] < 10
    assert missing == {"absent": "absent_package is not installed"}


def test_a_method_is_named_whole_or_in_part(recorded, tmp_path):
    names = ("projUNN-T, k = 4", "projUNN-T, k = 4, default rate", "expRNN")
    case = replace(COPYING, contenders=tuple(method(name, (2.0,)) for name in names), seeds=1)
    for chosen in (["projUNN-T, k = 4"], ["default", "exprnn"]):
        Comparison(Results(tmp_path), [case], seconds=1.0).run(chosen)
    assert [name for name, _, _ in recorded] == list(names)


def test_a_score_within_a_curve_lies_between_its_points():
    curve = [[0, 0.0, 4.0, 0.0], [10, 1.0, 1.0, 0.5], [20, 2.0, 0.01, 0.9]]
    row = {"curve": curve, "loss": 0.01, "accuracy": 0.9}
    assert report.score_at(row, 10) == (1.0, 0.5)
    assert report.score_at(row, 15) == pytest.approx((0.1, 0.7))
    assert report.score_at(row, 20.3) == (0.01, 0.9)
    assert report.score_at(row | {"loss": None}, 15) == (float("inf"), None)


def test_a_training_that_diverges_ends_and_loses(table_of_cases):
    lstm = next(c for c in recurrent.CONTENDERS if c.name == "RNN")
    bad = replace(lstm, make=lambda task, rate: _exploding(lstm.make(task, rate)))
    row = trial.train(COPYING, bad, 1e-3, seed=0, steps=1200)
    assert row["loss"] is None
    assert row["steps"] == 100
    assert protocol.loss_of(row) == float("inf")


def _exploding(made):
    model, optimizers = made
    model.readout.weight.register_hook(lambda g: g * float("nan"))
    return model, optimizers


def test_a_case_of_images_wants_their_file(monkeypatch, capsys):
    from bench.field import __main__ as command

    monkeypatch.setattr(sys, "argv", ["bench.field", "pixels-mnist"])
    with pytest.raises(SystemExit):
        command.main()
    assert "pixels-mnist: give the file of images by --data" in capsys.readouterr().err


def test_a_case_of_images_wants_as_many_as_its_rows_are_of(tmp_path):
    file = tmp_path / "few.npz"
    images, labels = numpy.zeros((50, 28, 28), numpy.uint8), numpy.arange(50, dtype=numpy.uint8) % 10
    numpy.savez(file, images=images, labels=labels)
    with pytest.raises(ValueError, match=r"few\.npz holds 10 images out, wanted 1,000 for deep-mnist"):
        CASES["deep-mnist"].make(0, file)
