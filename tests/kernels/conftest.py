"""Folders for tables of tuned configurations that no test and no user has written to."""

import pytest

from projunn_kernels.configs import choice


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty folders for the tables of the user and for those that ship."""
    for name in ("user", "shipped"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PROJUNN_CACHE", str(tmp_path / "user"))
    monkeypatch.delenv("PROJUNN_TABLES", raising=False)
    monkeypatch.setattr(choice, "shipped_folder", lambda: tmp_path / "shipped")
    choice.forget()
    yield tmp_path
    choice.forget()
