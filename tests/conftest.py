"""What every test gets: fixed seeds, and scratch memory full of NaN."""

import os

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter where there is no GPU: to be said before triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"

hypothesis.settings.register_profile("default", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("requires_cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_scratch():
    """Uninitialised memory reads as NaN, so that whatever is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def dtype(request):
    return request.param
