"""SIGINT and SIGTERM while the command ``projunn`` starts: they leave a word, and no traceback.

PyTorch takes seconds to import, and an exception in the midst of that can be swallowed by an extension
module, which is broken then.  So the handlers end the process, which has nothing to lose yet.  Training
has handlers of its own (`projunn.training.run`).  This is the first module of ours that is imported; in
a program that is not the command it does nothing.
"""

import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType
from typing import Any

from projunn.exit_status import INTERRUPTED

_before: dict[int, Any] = {}


def _watch_start() -> None:
    """Takes over both signals if this process is the command, which is seen by how it was started."""
    started = sys.argv[0] if sys.argv else ""
    as_module = started == "-m" and "projunn" in sys.orig_argv  # while Python looks for the module
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and parent_process() is None and (as_module or Path(started).stem == "projunn"):
        for number in (signal.SIGINT, signal.SIGTERM):
            _before[number] = signal.signal(number, _end)


def hand_over() -> None:
    """Gives the signals back."""
    while _before:
        signal.signal(*_before.popitem())


def _end(number: int, frame: FrameType | None) -> None:
    with suppress(Exception):
        sys.stdout.flush()
    os.write(2, f"projunn: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(INTERRUPTED)


_watch_start()
