"""Exit statuses that the commands share, as shells have them."""

import signal

FAILED = 1  # the command ran, and what it was to do did not succeed


def of_signal(number: int) -> int:
    """The status of a command that a signal has ended."""
    return 128 + number


INTERRUPTED = of_signal(signal.SIGINT)  # by Ctrl-C
