"""Trials of runs: they are killed, signalled, corrupted and raced, and counts are printed.

    python -m tests.trials kill --count 100         resumed runs take the bits of undisturbed ones
    python -m tests.trials signals --count 40       SIGINT and SIGTERM leave a word, not a traceback
    python -m tests.trials corruption --count 600   broken folders are refused, or nothing is lost
    python -m tests.trials races --count 20         one writer a folder; each run has its own

Each module has a function ``trial(number, folder)`` that returns what came of it, one of ``GOOD`` or a
sentence that says what went wrong.  A trial follows from its number, but for the moment of a signal.
"""
