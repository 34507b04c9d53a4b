"""A few trials of each kind; many more: ``python -m tests.trials``."""

import pytest

from tests.trials import corruption, kill, races, signals

pytestmark = pytest.mark.requires("rich", "matplotlib", "sklearn", "filelock")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, number):
    assert kill.trial(number, tmp_path) in kill.GOOD


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_one_process_writes_into_a_folder(tmp_path, number):
    assert races.trial(number, tmp_path) in races.GOOD


@pytest.mark.slow
@pytest.mark.parametrize("number", range(40))
def test_broken_folders_are_refused_or_resumed_as_they_were(tmp_path, number):
    assert corruption.trial(number, tmp_path) in corruption.GOOD


@pytest.mark.parametrize("number", range(2))
def test_signals_while_the_program_starts_leave_a_word(tmp_path, monkeypatch, number):
    monkeypatch.setattr(signals, "LONGEST", 0.5)
    assert signals.trial(number, tmp_path) == signals.GOOD[0]
