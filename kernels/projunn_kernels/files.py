"""Files that are written whole or not at all, and by one process after another."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

PARTIAL = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Gives a file to write, which then replaces ``path``: a reader sees the old content or the new.

    Until then the file has a name of its own beside ``path``, which no other process can have and no
    link can stand for.  It is deleted if the writing fails.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def one_after_another(lock: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same lock: it waits.

    The lock is an empty file, which stays.  The operating system releases it when a process ends,
    however it ends.  Nothing is waited for where there is nothing to lock with, as on some network file
    systems, where the file is another user's, or where a process on Windows keeps it for 10 seconds.
    """
    with ExitStack() as opened:  # closing the file releases it
        with suppress(OSError, ImportError):
            _lock(opened.enter_context(lock.open("ab")))
        yield


def _lock(file: IO[bytes]) -> None:
    """Waits for the lock of an open file.

    Raises:
        OSError: the file system has none, or Windows has waited for 10 seconds.
        ImportError: the operating system has none.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
