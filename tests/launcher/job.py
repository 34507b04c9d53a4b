"""Launches kernels through Triton's own launcher, on the driver of `driver.c`, and prints what arrived.

    python -m tests.launcher.job FOLDER

The kernels are compiled for an H100.  Nothing runs: a launch ends in the driver, which keeps it.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STREAM = 4096


class Sent(ctypes.Structure):
    """The ``Launch`` of `driver.c`."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("overlaps", ctypes.c_uint),
        ("stream", ctypes.c_ulonglong),
        ("function", ctypes.c_ulonglong),
        ("values", ctypes.c_ulonglong * 32),
    )


def driver(folder: Path) -> ctypes.CDLL:
    """Compiles the driver, and loads it under the name that Triton looks for."""
    import triton.backends.nvidia as nvidia

    include = Path(nvidia.__file__).parent / "include"
    source, library = Path(__file__).with_name("driver.c"), folder / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-w", f"-I{include}", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    loaded.latest.restype = ctypes.POINTER(Sent)
    return loaded


def use(loaded: ctypes.CDLL) -> None:
    """Makes the driver the one that Triton launches on, as if PyTorch saw its GPU."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver as active

    from projunn_kernels import private

    for name in ("_cuda_getCurrentRawStream", "_cuda_getDevice"):
        if not hasattr(torch._C, name):
            setattr(torch._C, name, lambda *_: 0)
    made = CudaDriver()
    made.get_current_device = lambda: 0
    made.get_current_stream = lambda _: STREAM
    made.get_current_target = lambda: GPUTarget("cuda", 90, 32)
    active.set_active(made)
    private.current_raw_stream = lambda: STREAM


def main() -> None:
    """Compile, launch, print."""
    folder = Path(sys.argv[1])
    loaded = driver(folder)
    use(loaded)

    import torch

    from projunn_kernels import launching
    from tests.launcher.kernel import PARAMETERS, copy_kernel

    loaded.expect(len(PARAMETERS), (ctypes.c_uint * len(PARAMETERS))(*PARAMETERS))
    asked = 0

    class Counted:
        """The kernel, counting how often Triton is asked for its binary."""

        arg_names = copy_kernel.arg_names

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            nonlocal asked
            asked += 1
            return copy_kernel[grid]

    def arrived() -> dict[str, Any]:
        sent = loaded.latest().contents
        return {
            name: getattr(sent, name) for name in ("block", "shared", "overlaps", "stream", "function")
        } | {
            "grid": list(sent.grid),
            "values": list(sent.values)[: len(PARAMETERS)],
            "made": loaded.made(),
            "asked": asked,
        }

    kernel, x, y = Counted(), torch.zeros(64), torch.zeros(64, dtype=torch.bfloat16)
    given = {"x": x, "y": y, "rate": 0.3, "n": 40, "one": 1, "large": 2**33, "FLAG": True, "BN": 32}
    shown = [{"x": x.data_ptr(), "y": y.data_ptr()}]
    for _ in range(2):
        launching.launch(kernel, (3, 2), **given, num_warps=2)
        shown.append(arrived())
    again = launching.Launch(kernel, (3, 2), **given, num_warps=2)
    for changed in ({}, {"x": x[32:]}, {"rate": -2.0}):
        again(**changed)
        shown.append(arrived())
    overlapping = launching.Launch(kernel, (3, 2), **given, **launching.options(2, overlap=True))
    for _ in range(2):
        overlapping()
        shown.append(arrived())
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
