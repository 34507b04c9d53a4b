"""How a signal ends the command ``projunn``: by one word and the exit status that shells know.

`projunn` imports this before torch, which takes seconds.  Until a command acts on signals itself, as the
training loop does, there is nothing to lose: the process ends at once, wherever it is.
"""

import os
import re
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

from projunn.exit_status import of_signal

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def _is_the_command() -> bool:
    """True in a process that was started as ``projunn`` or ``python -m projunn``."""
    if threading.current_thread() is not threading.main_thread() or not sys.argv:
        return False
    if sys.argv[0] != "-m":
        return Path(sys.argv[0]).stem == "projunn"
    module = sys.orig_argv[len(sys.orig_argv) - len(sys.argv)]  # Python is looking for it
    return re.fullmatch(r"(-\w*m)?projunn", module) is not None


def say(number: int) -> None:
    """Says that a signal ends the command."""
    with suppress(Exception):  # it may have come while something was printed
        sys.stdout.flush()
    os.write(2, f"projunn: {_WORDS[signal.Signals(number)]}\n".encode())


def _end(number: int, frame: FrameType | None) -> None:
    say(number)
    os._exit(of_signal(number))


def raise_on_interrupt() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt again, for commands that keep what is done."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_the_command():
    for _number, _usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(_number) is _usual:  # not one that is ignored, as in the background
            signal.signal(_number, _end)
