"""The choice of the backend."""

import pytest

import projunn
from projunn.backends import chosen_backend


def test_default_setter_and_context(monkeypatch):
    monkeypatch.delenv("PROJUNN_BACKEND", raising=False)
    assert chosen_backend() == ("auto", "default")
    with projunn.backend("torch"):
        assert chosen_backend() == ("torch", "projunn.backend")
        with projunn.backend("auto"):
            assert chosen_backend()[0] == "auto"
        assert chosen_backend()[0] == "torch"
    assert chosen_backend() == ("auto", "default")


def test_environment(monkeypatch):
    monkeypatch.setenv("PROJUNN_BACKEND", "torch")
    assert chosen_backend() == ("torch", "PROJUNN_BACKEND")
    monkeypatch.setenv("PROJUNN_BACKEND", "cuda")
    with pytest.raises(ValueError, match="PROJUNN_BACKEND: got 'cuda'"):
        chosen_backend()


@pytest.mark.parametrize("name", ["triton", "interpret"])
def test_a_choice_that_cannot_be_met_raises_and_changes_nothing(name):
    with pytest.raises(RuntimeError, match=name):
        projunn.backend(name)
    assert chosen_backend()[1] == "default"


def test_unknown_name():
    with pytest.raises(ValueError, match="name: got 'tpu', wanted one of auto"):
        projunn.backend("tpu")
