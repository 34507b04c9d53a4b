"""Configurations: which one is in force and why, and what tuning is estimated to take."""

import json
import random
import warnings
from dataclasses import replace

import pytest

from projunn_kernels.configs import choice as tuning
from projunn_kernels.configs import tables
from projunn_kernels.configs.closed_form import candidates, closed_form, tuned
from projunn_kernels.configs.problem import Config, Device, Problem
from projunn_kernels.configs.tables import Entry
from projunn_kernels.tuning.plan import Plan, duration

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("folders")

GPU = Device("Test GPU 9000", "9.0", 132, 232_448)
SIBLING = replace(GPU, name="Test GPU 9001", processors=100)
COUSIN = replace(GPU, name="Test GPU 8000", capability="8.0")
PROBLEM = Problem("rank_update", False, 1, 40, 40, 2)
TUNED = Config(8, 64, 4)


def file(device=GPU):
    return tables.cache_folder() / tables.table_name(device.name)


def entry(config=TUNED):
    from projunn_kernels.configs.fingerprints import fingerprints

    kernels = {"rank_update_kernel": fingerprints()["rank_update_kernel"]}
    return {PROBLEM.bucket: Entry(config, 0.5, 0.75, kernels)}


def ship(folders, device=GPU, config=TUNED):
    """A table among those that ship; the user's is as before."""
    before = file(device).read_text() if file(device).exists() else None
    written = tables.write_table(device, entry(config))
    written.rename(folders / "shipped" / written.name)
    if before is not None:
        file(device).write_text(before)


def change(**changes):
    """Edit the user's table."""
    file().write_text(json.dumps(json.loads(file().read_text()) | changes))
    tuning.forget()


def in_force(device=GPU):
    return tuning.config_for(PROBLEM, device)


def lines(device=GPU):
    return [found.described(device) for found in tuning.found_tables(device)]


# -- closed forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 5, 33, 64, 128, 1000, 16384])
def test_closed_form_is_a_candidate_and_in_range(pairs, k, n):
    for operation in tuned():
        if operation == "fused_step" and n > 128:
            continue
        problem = Problem(operation, pairs, k, n, n, 3)
        found = candidates(problem, GPU)
        assert found[0] == closed_form(problem, GPU)
        assert len(set(found)) == len(found)
        for config in found:
            assert 1 <= config.warps <= 16
            assert config.rows & (config.rows - 1) == config.columns & (config.columns - 1) == 0


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("n", [1024, 2048, 4096, 8192, 16384])
def test_what_a_rotation_reads_beside_w(pairs, k, n):
    """A tile of rows reads Q and T whole, and W twice where it is not held: at most 7 times W in all."""
    tile = closed_form(Problem("rotate_rows", pairs, k, n, n, 1), GPU)
    assert 4 * k / tile.rows + (2 if tile.hold else 3) <= 7
    assert n // tile.rows >= 0.9 * GPU.processors


@pytest.mark.parametrize("n", [64, 100, 128])
def test_complex_banks_share_multiprocessors(n):
    """A program of 8192 floats has one to itself; a step of few matrices still has those."""
    few, many = (closed_form(Problem("fused_step", True, 1, n, n, count), GPU) for count in (20, 544))
    assert 2 * few.rows * few.columns == 8192
    assert 2 * many.rows * many.columns == 4096


def test_what_is_tried_for_a_problem_is_tried_for_its_bucket():
    """Or a winner would be left out when its table is read.  The closed form is none."""
    draw = random.Random(0)
    for _ in range(4000):
        operation, k = draw.choice(tuned()), draw.choice([1, 1, draw.randint(2, 8)])
        most = {"fused_step": 128, "unit_product": 1024, "plane_rows": 1024}.get(operation, 5000)
        m, n = (draw.randint(1, most) for _ in range(2))
        pairs = draw.random() < 0.5
        problem = Problem(operation, pairs, k, m, n, draw.choice([1, 2, draw.randint(1, 2000)]))
        bucket = Problem.of_bucket(problem.bucket)
        assert bucket.bucket == problem.bucket
        assert set(candidates(problem, GPU)[1:]) <= set(candidates(bucket, GPU)), problem


@pytest.mark.parametrize(
    "bucket", ["", "svd/real/k1/8x8/b1/2", "product/real/k1/8x8", "product/real/k-1/8x8/b1", "x" * 10**6]
)
def test_what_is_no_bucket_names_none(bucket):
    with pytest.raises(ValueError, match="names no bucket"):
        Problem.of_bucket(bucket)


# -- what is in force ----------------------------------------------------------------------------------


def test_a_table_is_in_force_at_once():
    assert in_force() == (closed_form(PROBLEM, GPU), "closed form")
    tables.write_table(GPU, entry())
    tuning.forget()
    assert in_force() == (TUNED, str(file()))
    assert "1 buckets), then closed form" in tuning.in_force(GPU)["rank_update"]
    assert "no table in force for Test GPU 9000" in tuning.in_force(GPU)["fused_step"]
    assert tuning.tuned_buckets(GPU) == {PROBLEM.bucket}
    (line,) = lines()
    assert line.startswith(f"{file()}: used, 1 buckets (triton {tables.triton_version()}, torch ")


def test_own_tables_come_before_siblings_and_the_users_before_those_that_ship(folders):
    ship(folders, SIBLING, Config(8, 64, 2))
    assert in_force() == (Config(8, 64, 2), "shipped test-gpu-9001.json")
    tables.write_table(SIBLING, entry(Config(16, 64, 8)))
    tuning.forget()
    assert in_force() == (Config(16, 64, 8), str(file(SIBLING)))
    ship(folders, GPU, Config(16, 64, 4))
    tuning.forget()
    assert in_force() == (Config(16, 64, 4), "shipped test-gpu-9000.json")
    tables.write_table(GPU, entry())
    tuning.forget()
    assert in_force() == (TUNED, str(file()))
    found = lines()
    assert [line.partition(": used, 1 buckets")[0] for line in found] == [
        str(file()), "shipped test-gpu-9000.json", str(file(SIBLING)), "shipped test-gpu-9001.json",
    ]  # fmt: skip
    of_sibling = "measured on Test GPU 9001, which has the same compute capability)"
    assert [line.endswith(of_sibling) for line in found] == [False, False, True, True]


def test_a_table_of_another_capability_is_not_used_and_info_says_so(folders):
    ship(folders, COUSIN)
    assert in_force()[1] == "closed form"
    assert in_force(COUSIN)[0] == TUNED
    assert lines() == [
        "shipped test-gpu-8000.json: not used: made for compute capability 8.0, Test GPU 9000 has 9.0"
    ]


def test_a_table_made_with_another_triton_is_not_used_and_info_says_so():
    tables.write_table(GPU, entry())
    change(triton="3.0.0")
    assert in_force()[1] == "closed form"
    assert lines() == [f"{file()}: not used: made with triton 3.0.0, this is {tables.triton_version()}"]


def test_an_entry_of_a_kernel_that_has_changed_is_left_out_and_info_says_so():
    old = {PROBLEM.bucket: Entry(TUNED, 0.5, 0.75, {"rank_update_kernel": "0" * 16})}
    gone = {"product/real/k1/64x64/b1": Entry(None, 0.5, 0.5, {"gone_kernel": "0" * 16})}
    tables.write_table(GPU, old | gone)
    assert in_force()[1] == "closed form"
    assert lines() == [
        f"{file()}: not used: nothing is in force of it; left out: 2 of kernels that have changed since"
    ]
    tables.write_table(GPU, entry())
    tuning.forget()
    assert in_force() == (TUNED, str(file()))
    assert lines()[0].endswith("; left out: 1 of kernels that have changed since")


@pytest.mark.parametrize("config", [Config(8, 64, 4, hold=True), Config(8, 64, 32), Config(8, 8192, 4)])
def test_an_entry_that_the_autotuner_would_not_try_is_left_out_and_info_says_so(config):
    """A table cannot make a kernel do what nobody has thought of."""
    tables.write_table(GPU, entry(config) | {"svd/real/k1/8x8/b1": Entry(TUNED, 1.0, 1.0, {})})
    assert in_force()[1] == "closed form"
    assert lines()[0].endswith("nothing is in force of it; left out: 2 that this version would not try")


def test_where_the_closed_form_was_the_fastest_the_users_table_says_so(folders):
    ship(folders)
    tables.write_table(GPU, entry(None))
    tuning.forget()
    assert in_force() == (closed_form(PROBLEM, GPU), f"closed form, the fastest in {file()}")


def test_tables_can_be_switched_off(folders, monkeypatch):
    ship(folders)
    tables.write_table(GPU, entry())
    monkeypatch.setenv("PROJUNN_TABLES", "off")
    tuning.forget()
    assert in_force() == (closed_form(PROBLEM, GPU), "closed form")
    assert tuning.in_force(GPU)["rank_update"] == "closed form: PROJUNN_TABLES=off"
    assert [line.rpartition(": ")[2] for line in lines()] == ["PROJUNN_TABLES=off"] * 2
    monkeypatch.setenv("PROJUNN_TABLES", "on")
    tuning.forget()
    assert in_force()[0] == TUNED


def test_an_unknown_setting_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("PROJUNN_TABLES", "none")
    with pytest.raises(ValueError, match="PROJUNN_TABLES: got 'none', wanted on or off"):
        in_force()


def test_a_broken_table_is_ignored_with_one_warning():
    tables.write_table(GPU, entry())
    file().write_text(file().read_text().replace('"rows": 8', '"rows": 7'))
    tuning.forget()
    with pytest.warns(UserWarning, match="tuning table ignored: .*rows is 7, not a power of two"):
        assert in_force() == (closed_form(PROBLEM, GPU), "closed form")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_force()
    assert "not used: cannot be read: rank_update/real/k1/64x64/b2: rows is 7" in lines()[0]


def test_other_files_in_the_cache_are_none_of_our_business():
    for name, text in (("verdicts.json", '{"kernels": {}}'), ("notes.txt", "{"), (".json", "[]")):
        (tables.cache_folder() / name).write_text(text)
    (tables.cache_folder() / "folder.json").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_force()[1] == "closed form"
    assert lines() == []
    (tables.cache_folder() / "torn.json").write_text("{")
    assert "torn.json: not used: cannot be read: Expecting" in lines()[0]


def test_using_overrides_and_ends():
    with tuning.using({"rank_update": Config(1, 16, 1)}):
        assert tuning.config_for(PROBLEM, GPU) == (Config(1, 16, 1), "given")
    assert tuning.config_for(PROBLEM, GPU)[1] == "closed form"


def test_what_is_asked_for_is_noted():
    other = replace(PROBLEM, m=41)
    with tuning.asked() as outer:
        tuning.config_for(PROBLEM, GPU)
        with tuning.asked() as inner:
            tuning.config_for(other, GPU)
    tuning.config_for(PROBLEM, GPU)
    assert (outer, inner) == ([PROBLEM, other], [other])


# -- how long it will take -----------------------------------------------------------------------------


def test_the_estimate_counts_each_binary_and_each_timing_and_follows_what_is_measured():
    product, larger = (Problem("product", False, 1, n, n, 1) for n in (1024, 2048))
    update = Problem("rank_update", False, 1, 1024, 1024, 1)
    plan = Plan([product, larger, product, update], GPU, 4)
    assert plan.problems == [product, larger, update]
    assert plan.candidates == sum(len(candidates(problem, GPU)) for problem in plan.problems)
    guess = plan.seconds_left
    assert (
        Plan([product, update], GPU, 4).seconds_left < guess < Plan(plan.problems, GPU, 1).seconds_left
    )
    assert plan.batch(0) == [product]  # whose candidates keep four processes busy
    plan.compiled([product], 100.0)
    assert plan.seconds_left > guess  # it took much longer than guessed, and so will the update
    plan.compiled([larger], 0.0)  # the same binaries
    before = plan.seconds_left
    plan.note_timed(product, 0.0)
    assert plan.timed == len(candidates(product, GPU))
    assert plan.seconds_left < before
    plan.compiled([update], 0.0)
    for problem in (larger, update):
        plan.note_timed(problem, 0.0)
    assert plan.seconds_left == pytest.approx(0.0)


def test_durations_are_for_readers():
    assert [duration(s) for s in (0.4, 40, 89, 720, 3900, 7500)] == [
        "0 s", "40 s", "89 s", "12 min", "65 min", "2 h 05 min",
    ]  # fmt: skip
