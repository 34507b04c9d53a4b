"""Exit statuses that the commands share, as shells have them."""

INTERRUPTED = 130  # 128 + SIGINT: Ctrl-C ended the command
