"""What every test gets, and the two worlds that the suite runs in.

Where PyTorch sees a GPU, the Triton kernels are compiled and run there; elsewhere they run on CPU
tensors in Triton's interpreter.  A test of the kernels takes its device and backend from ``kernels``::

    def test_x(kernels):
        tensors = [t.to(kernels.device) for t in draw()]
        with kernels.backend():
            result = operation(*tensors)
        assert_close(precise(result), expected)  # in float64, on the CPU

Everything else runs on the CPU in both worlds.  Marks say what a test needs: ``requires_cuda``,
``interpreter_only`` (what it watches exists in the interpreter only), ``requires_cpp`` (a C++ compiler,
for TorchInductor), ``requires("name", ...)`` (packages).  Without it a test is skipped, and says why.
``draws`` marks a test that looks at the pictures it makes; those of others are empty files.
``python -m pytest -m kernels`` runs the tests that run on a GPU where there is one.

Environment:

    TRITON_INTERPRET=1
        The interpreter, on a machine with a GPU too.
    PROJUNN_TEST_WITHOUT_INTERPRETER=1
        Neither interpreter nor GPU.  What passes here does not need the interpreter unawares, and so
        passes on a machine with a GPU.
    PROJUNN_TEST_SEED=7
        Other random numbers.  A test that is right by luck fails with some of them.

Where pytest-xdist is installed, a run of the whole suite takes every core (``-n 0`` for one process).
"""

import functools
import importlib.util
import math
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Processes that tests start find this checkout, whether or not any version is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # lets cuBLAS be deterministic
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of the processes, set before torch starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from projunn_kernels import backends  # noqa: E402
from tests.interpreter import quicken  # noqa: E402

WITHOUT_INTERPRETER = os.environ.get("PROJUNN_TEST_WITHOUT_INTERPRETER", "0") not in ("", "0")
if WITHOUT_INTERPRETER:
    os.environ.pop("TRITON_INTERPRET", None)
elif not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # to be said before anything imports triton
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")

hypothesis.settings.register_profile("default", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """All cores for the whole suite; what is named on the command line runs in this process."""
    if hasattr(config, "workerinput"):  # workers come through here too, and would start workers
        return
    options = config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and getattr(options, "numprocesses", 0) is None and not options.usepdb:
        options.numprocesses = "auto"
        options.dist = "worksteal"


def pytest_report_header():
    if INTERPRETED:
        where = "Triton's interpreter, on CPU tensors"
    elif torch.cuda.is_available():
        where = f"compiled, on {torch.cuda.get_device_name()}"
    else:
        where = "not at all"
    return f"torch {torch.__version__}; kernels run: {where}"


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    there = {
        "requires_cuda": torch.cuda.is_available() and not INTERPRETED,
        "interpreter_only": INTERPRETED and _installed("triton"),
        "requires_cpp": _compiles_cpp(),
    }
    needs = {
        "requires_cuda": "there is no CUDA GPU",
        "interpreter_only": "needs Triton's interpreter",
        "requires_cpp": "needs a C++ compiler and Python's headers",
    }
    for item in items:
        if "kernels" in item.fixturenames or item.get_closest_marker("requires_cuda"):
            item.add_marker("kernels")
        for mark in item.iter_markers():
            absent = [name for name in mark.args if mark.name == "requires" and not _installed(name)]
            if absent or not there.get(mark.name, True):
                reason = needs.get(mark.name, f"not installed: {', '.join(absent)}")
                item.add_marker(pytest.mark.skip(reason=reason))


@functools.cache
def _installed(name):
    return importlib.util.find_spec(name) is not None


def _compiles_cpp():
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(os.environ.get("CXX", "g++")) is not None and headers.exists()


@dataclass(frozen=True)
class Kernels:
    """Where the Triton kernels run in this process."""

    device: torch.device
    name: str

    def backend(self):
        """``with kernels.backend():`` operations on float32 tensors of that device are the kernels'."""
        import projunn

        return projunn.backend(self.name)


@pytest.fixture(scope="session")
def kernels():
    pytest.importorskip("triton")
    if INTERPRETED:
        return Kernels(torch.device("cpu"), "interpret")
    if not torch.cuda.is_available():
        pytest.skip("there is neither a GPU nor Triton's interpreter")
    return Kernels(torch.device("cuda", torch.cuda.current_device()), "triton")


@pytest.fixture
def launches(kernels):
    """The kernel and the number of programs of each launch, as ``[("product", 3), ...]``."""
    from projunn_kernels.launching import intercepted

    seen = []

    class Counting:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            seen.append((self.kernel.__name__.removesuffix("_kernel"), math.prod(grid)))
            return self.kernel[grid]

    with intercepted(Counting), kernels.backend():
        yield seen


@pytest.fixture(autouse=True, scope="session")
def _own_settings(tmp_path_factory):
    """Nothing that the user has set or tuned decides; no kernel gives way to PyTorch unseen."""
    for name in [name for name in os.environ if name.startswith("PROJUNN_")]:
        if not name.startswith("PROJUNN_TEST_"):
            del os.environ[name]
    os.environ["PROJUNN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["PROJUNN_SELFCHECK"] = "off"


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter():
    """What makes Triton's interpreter quick, to be undone by a test of that."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED and _installed("triton"):
            quicken(patch)
        yield patch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(int(os.environ.get("PROJUNN_TEST_SEED", "0")))


@pytest.fixture(autouse=True)
def _empty_pictures(request, monkeypatch):
    """A picture takes longer than the training that it shows: only a test that is about one draws it."""
    if request.node.get_closest_marker("draws") is None and _installed("matplotlib"):
        from matplotlib.figure import Figure

        monkeypatch.setattr(Figure, "savefig", lambda _, file, **how: Path(file).touch())


@pytest.fixture(autouse=True)
def _own_backend():
    """No test leaves the choice of a backend to those after it: in the interpreter they would crawl."""
    calls, blocks = list(backends._calls), backends._blocks.get()
    yield
    with backends._changing_calls():
        backends._calls[:] = calls
    backends._blocks.set(blocks)


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
