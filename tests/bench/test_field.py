"""Comparisons at equal budgets: who starts where, what is trained, repeated and reported."""

import json
import sys
import time
from dataclasses import replace

import pytest
import torch

from bench import bench_field
from bench.field import choices, convolutions, matrices, protocol, recurrent, report, trial
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
    row = trial.train(case, contender, contender.rates[0], seed=0, seconds=0.05)
    steps, seconds, loss, _ = row["curve"][-1]
    assert steps == row["steps"] > 0
    assert seconds >= 0.05
    assert loss == row["loss"] is not None
    assert row["curve"][0][:2] == [0, 0.0]
    if row["defect"] is not None and contender.name not in ("Muon", "unconstrained"):
        assert row["defect"] < (0.1 if contender.name == "POGO" else 1e-5)


def test_a_case_says_how_many_points_its_curves_have():
    frozen = next(one for one in recurrent.CONTENDERS if one.name == "frozen matrix")
    row = trial.train(replace(COPYING, points=3), frozen, frozen.rates[0], seed=0, seconds=0.6)
    assert [round(seconds, 1) for _, seconds, _, _ in row["curve"]] == pytest.approx(
        [0, 0.2, 0.4, 0.6], abs=0.11
    )


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
    seen = []
    original = trial._step

    def note(task, model, optimizers, batch):
        seen.append(batch[1].sum().item())
        original(task, model, optimizers, batch)

    monkeypatch.setattr(trial, "_step", note)
    streams = []
    for name in ("LSTM", "EUNN, 8 layers", "projUNN-T, k = 1"):
        (contender,) = (c for c in recurrent.CONTENDERS if c.name == name)
        seen.clear()
        trial.train(COPYING, contender, contender.rates[0], seed=1, seconds=0.3)
        streams.append(seen[2:])  # after the warm-up
    common = min(map(len, streams))
    assert common > 1
    assert len({tuple(stream[:common]) for stream in streams}) == 1


@pytest.fixture
def recorded(monkeypatch):
    """Trainings are looked up, and listed: the second rate is best with the first seed."""
    calls = []

    def train(case, contender, rate, seed, seconds, data=None):
        if contender.name == "absent":
            raise ModuleNotFoundError("No module", name="absent_package")
        calls.append((contender.name, rate, seed))
        loss = {1.0: 0.5, 2.0: 0.25, 3.0: None}[rate] if seed == 0 else 0.5 + seed
        curve = [[0, 0.0, 2.0, None], [10, seconds, loss, None]]
        return {
            "steps": 10,
            "seconds": seconds,
            "loss": loss,
            "accuracy": None,
            "naive": 1.0,
            "defect": None,
            "curve": curve,
        }

    monkeypatch.setattr(protocol, "train", train)
    return calls


def method(name, rates=(1.0, 2.0, 3.0)):
    return Contender(name, lambda task, rate: None, rates, "#000000")


def test_trials_choose_the_rate_and_other_seeds_follow(recorded, tmp_path):
    case = replace(COPYING, contenders=(method("a"),))
    Comparison(Results(tmp_path), [case], seconds=1.0).run()
    assert recorded == [("a", 1.0, 0), ("a", 2.0, 0), ("a", 3.0, 0), ("a", 2.0, 1), ("a", 2.0, 2)]


def test_what_has_a_row_is_not_trained_again(recorded, tmp_path):
    case = replace(COPYING, contenders=(method("a"), method("b")))
    Comparison(Results(tmp_path), [case], seconds=1.0, seeds=(0,)).run(("a",))
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
    Comparison(Results(tmp_path), [case], seconds=1.0, seeds=(0,)).run(("b",))  # one seed only
    Comparison(Results(tmp_path), [case], seconds=0.5).run(("c",))  # a smaller budget
    text = report.tables(tmp_path)
    assert "| a | 2 | 1.42 (0.25 to 2.5) |" in text
    assert "| b |" not in text
    assert "| c |" not in text
    (picture,) = report.draw(tmp_path)
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


def test_a_training_that_diverges_ends_and_loses(table_of_cases):
    lstm = next(c for c in recurrent.CONTENDERS if c.name == "RNN")
    bad = replace(lstm, make=lambda task, rate: _exploding(lstm.make(task, rate)))
    row = trial.train(COPYING, bad, 1e-3, seed=0, seconds=5.0)
    assert row["loss"] is None
    assert row["seconds"] < 5.0
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
