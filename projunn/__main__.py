"""Runs the command line as ``python -m projunn``."""

import sys

from projunn.cli import main

sys.exit(main())
