"""Where the numbers of a case come from."""

import random
from math import prod

import torch

from projunn import init

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
SIZES = (1, 1, 2, 3, 4, 5, 8, 13, 32)
BATCHES = ((), (), (), (3,), (2, 2), (0,))
# Sizes of entries, in the range of float32; those of float64 go further.
SCALES = (0.0, 1e-45, 1e-38, 1e-30, 1e-12, 1e-6, 1e-3, 0.1, 1.0, 1.0, 1.0, 2.0, 10.0, 100.0, 1e4)
HUGE = (1e6, 1e10, 1e18, 1e19, 1e30, 1e36, 3e38)
DOUBLE = (1e-300, 1e-160, 1e40, 1e100, 1e155, 1e300)


class Draw:
    """The random choices of one case.

    Attributes:
        said: the choices that have a name, for the line that tells of a violation.
        generator: of the entries of tensors.
    """

    def __init__(self, family: str, seed: int) -> None:
        self._choose = random.Random(f"{family} {seed}")
        self.generator = torch.Generator().manual_seed(self._choose.getrandbits(62))
        self.said: dict[str, object] = {}

    def choice(self, name, options):
        """One of the options."""
        self.said[name] = chosen = self._choose.choice(options)
        return chosen

    def chance(self, name, probability):
        """True with a probability."""
        self.said[name] = chosen = self._choose.random() < probability
        return chosen

    def integer(self, name, low, high):
        """An integer from ``low`` to ``high``, both included."""
        self.said[name] = chosen = self._choose.randint(low, high)
        return chosen

    def unnamed(self, options):
        """One of the options, which the line of a violation does not tell."""
        return self._choose.choice(options)

    def below(self, high):
        """An integer from 0 to ``high`` - 1, which the line of a violation does not tell."""
        return self._choose.randrange(high)

    def dtype(self):
        return self.choice("dtype", DTYPES)

    def scale(self, name, dtype):
        """The size of entries: nothing, ordinary, or at the ends of a dtype's range."""
        wide = torch.finfo(dtype).max > 1e300
        return self.choice(name, SCALES + HUGE + (DOUBLE if wide else ()))

    def randn(self, *shape, dtype):
        return torch.randn(shape, dtype=dtype, generator=self.generator)

    def haar(self, *shape, dtype):
        return init.haar_(torch.empty(shape, dtype=dtype), self.generator)

    def laid_out(self, name, tensor):
        """The numbers of a matrix or a batch of them in memory of some layout, and that memory."""
        how = self.choice(name, ("contiguous", "contiguous", "transposed", "sliced", "batch last"))
        if how == "transposed":
            memory = torch.full_like(tensor.mT, 7.0, memory_format=torch.contiguous_format)
            view = memory.mT
        elif how == "sliced":
            *batch, m, n = tensor.shape
            memory = torch.full((*batch, m + 2, 2 * n + 3), 7.0, dtype=tensor.dtype)
            view = memory[..., 1 : m + 1, 2 : 2 * n + 2 : 2]
        elif how == "batch last":
            order = (tensor.ndim - 2, tensor.ndim - 1, *range(tensor.ndim - 2))
            memory = torch.full_like(tensor.permute(order), 7.0, memory_format=torch.contiguous_format)
            view = memory.permute(*range(2, tensor.ndim), 0, 1)
        else:
            memory = view = torch.empty(tensor.shape, dtype=tensor.dtype)
        view.copy_(tensor)
        return view, memory

    def spoiled(self, tensor, probability):
        """A copy with an entry that is not finite in some of the matrices."""
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        matrices = tensor.view(prod(tensor.shape[:-2]), *tensor.shape[-2:])
        for matrix in matrices:
            if matrix.numel() and self._choose.random() < probability:
                entry = self._choose.randrange(matrix.numel())
                bad = self._choose.choice((float("nan"), float("inf"), float("-inf")))
                matrix.view(-1)[entry] = bad
        return matrices.view(tensor.shape)
