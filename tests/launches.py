"""What a GPU is asked for: launches of Triton kernels and calls of PyTorch's library.

The interpreter backend takes the paths that a GPU takes, so both can be listed without a GPU too.
"""

import contextlib
import math
import re

from torch._library.custom_ops import OPDEFS  # read in torch 2.11 and 2.13
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from projunn_kernels import selfcheck
from projunn_kernels.launching import intercepted

# Linear algebra that PyTorch does for a batch of any size in a fixed number of launches, without a copy
# to the host: cuSOLVER's potrfBatched, cuBLAS' trsmBatched, reductions
# (aten/src/ATen/native/cuda/linalg).
BATCHED = {"linalg_cholesky_ex", "linalg_solve_triangular", "linalg_vector_norm"}
# All other linear algebra is refused, for these reasons:
#   qr                      orgqr is called once a matrix, geqrf too unless they are many and small
#   svd, eigh               once a matrix unless they are small, and the host looks at the result
#   lu, inv, solve, det     once a matrix from 512 columns on; MAGMA's, for larger batches, waits
#   lstsq                   by qr
#   matrix_exp              matrices are sorted by norm, on the host
ALGEBRA = re.compile(
    "linalg|cholesky|solve|lstsq|inverse|pinverse|svd|qr|geqrf|orgqr|ormqr|eigh?|lu|s?logdet|det|matrix_exp"
)


# Nothing is computed; how often depends on which tables of addresses are known already.
_FREE = {"detach", "detach_", "alias", "lift_fresh"}


class Library(TorchDispatchMode):
    """Lists the calls of PyTorch's library by name, also those inside of the operators of ours."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.looped = set()  # those that PyTorch makes once a matrix

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        options = options or {}
        if operator.namespace == "projunn":
            with self:
                return OPDEFS[operator.name().split(".")[0]]._init_fn(*arguments, **options)
        if operator._can_decompose():  # below autograd, what is made of other operations arrives whole
            with self:
                return operator.decompose(*arguments, **options)
        name = operator.name().removeprefix("aten::").split(".")[0]
        if name not in _FREE and operator.namespace != "profiler":
            self.calls.append(name)
        words = {name, *name.split("_")}
        if any(map(ALGEBRA.fullmatch, words)) and name not in BATCHED:
            self.looped.add(name)
        if (
            name == "linalg_solve_triangular"
        ):  # PyTorch loops over up to 8 triangles of 64 columns or more
            *batch, size, _ = arguments[0].shape
            if size >= 64 and 1 < math.prod(batch) <= 8:
                self.looped.add(f"{name} of size {size}")
        return operator(*arguments, **options)


class Seen:
    """Names of the kernels launched, with their number of programs, and the library calls."""

    def __init__(self):
        self.launches = []
        self.library = Library()

    @property
    def kernels(self):
        return [name for name, _ in self.launches]

    @property
    def calls(self):
        return self.library.calls

    def clear(self):
        self.launches.clear()
        self.library.calls.clear()


@contextlib.contextmanager
def watched(kernels, run=True):
    """Inside, in the backend of the kernels, a `Seen`.  Without ``run`` kernels do nothing.

    On leaving, nothing may have been called once a matrix.
    """
    seen = Seen()

    class Launcher:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                seen.launches.append((self.kernel.__name__.removesuffix("_kernel"), math.prod(grid)))
                if run:
                    with _disable_current_modes():
                        self.kernel[grid](*arguments, **options)

            return launch

    with selfcheck.suspended(), intercepted(Launcher), kernels.backend(), seen.library:
        yield seen
    looped = ", ".join(sorted(seen.library.looped))
    assert not looped, f"PyTorch calls once a matrix, or waits for: {looped}"
