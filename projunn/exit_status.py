"""Exit statuses that the commands share, as shells have them."""

INTERRUPTED = 130  # 128 + SIGINT: Ctrl-C ended the command
FAILED = 1  # the command ran, and what it was to do did not succeed
