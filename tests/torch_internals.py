"""PyTorch's own test inputs."""

import pytest
import torch


def internal(name):
    """A module of ``torch.testing._internal``, or a skip where its packages are missing.

    Importing them forbids the whole process to set flags of cuDNN, which other tests do.
    """
    pytest.importorskip("expecttest", reason="torch.testing._internal imports it")
    module = pytest.importorskip(f"torch.testing._internal.{name}")
    own = torch.backends.flags_frozen.__globals__  # read in torch 2.11 and 2.13
    own["__allow_nonbracketed_mutation_flag"] = True
    return module
