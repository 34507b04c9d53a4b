"""Signals end the command with a word and the status that shells know, from its first line on."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

WORDS = {signal.SIGINT: "projunn: interrupted\n", signal.SIGTERM: "projunn: terminated\n"}
SCRIPT = shutil.which("projunn", path=sysconfig.get_path("scripts"))
ROOT = Path(__file__).parents[1]

each = pytest.mark.parametrize("number", WORDS, ids=lambda number: number.name)
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


def started(*command, before=()):
    """A process whose import of torch prints a line and never ends."""
    path = os.pathsep.join(map(str, (*before, ROOT, ROOT / "kernels")))
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def ended(process, number):
    """Its status and what it said, after a signal."""
    try:
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said


@pytest.fixture
def endless_torch(tmp_path):
    (tmp_path / "torch.py").write_text("print('here', flush=True)\nimport time\ntime.sleep(600)\n")
    return tmp_path


@each
@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-m", "projunn", "info"),
        (sys.executable, "-Xutf8", "-mprojunn", "train", "adding", "-m"),
        pytest.param(
            (sys.executable, SCRIPT, "train", "--help"),
            marks=pytest.mark.skipif(SCRIPT is None, reason="projunn is not installed"),
        ),
    ],
    ids=["module", "option", "script"],
)
def test_while_torch_is_imported(endless_torch, command, number):
    process = started(*command, before=[endless_torch])
    assert process.stdout.readline() == "here\n"
    assert ended(process, number) == (128 + number, WORDS[number])


@each
def test_a_program_of_the_user_keeps_its_own(endless_torch, number):
    process = started(sys.executable, "-c", "import projunn", before=[endless_torch])
    assert process.stdout.readline() == "here\n"
    status, said = ended(process, number)
    assert status in (-number, 1)
    assert "projunn: " not in said


@each
@pytest.mark.requires("rich", "matplotlib", "filelock")
def test_at_any_time_of_a_run(tmp_path, number):
    options = ["--hidden", "8", "--length", "10", "--device", "cpu", "--steps", "1000000"]
    for after in (0.3, 1.0, 2.0, 3.0):
        command = [sys.executable, "-m", "projunn", "train", "adding", *options]
        process = started(*command, "--out", str(tmp_path / f"{after}"))
        time.sleep(after)
        status, said = ended(process, number)
        assert status == 128 + number
        assert said in ("", WORDS[number])


@pytest.mark.requires("rich", "matplotlib", "filelock")
def test_an_interrupt_that_a_command_lets_through_is_said(monkeypatch, capfd):
    from projunn import cli

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_info", interrupted)
    assert cli.main(["info"]) == 130
    assert capfd.readouterr().err == "projunn: interrupted\n"
