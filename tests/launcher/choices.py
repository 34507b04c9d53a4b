"""Trains without a GPU, and asks at each launch whether Triton would choose the same binary.

    python -m tests.launcher.choices

Launches are made by a table of binaries, and kept ones by their addresses alone (`launching`).  Here
Triton's own rule tells binaries apart, but none is compiled and none runs.  Prints a JSON object: the
launches for which Triton was asked, those for which it was not, and those of the wrong binary.
"""

import json
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import projunn
from projunn import init
from projunn.nn import UnitaryConv2d, UnitaryLinear, UnitaryRNN
from projunn.optim import SGD, AdamW, Lion, RMSprop
from projunn_kernels import backends, private

asked, direct, wrong = 0, 0, set()


def choice(kernel: JITFunction, arguments: dict[str, Any]) -> str:
    """What Triton tells binaries of a kernel apart by."""
    binder = kernel.device_caches[0][-1]
    _, kinds, options = binder(**arguments, debug=False)
    return repr((kinds, sorted(options.items())))


class Address:
    """Where a tensor of a dtype may be."""

    def __init__(self, at: int, dtype: torch.dtype) -> None:
        self._at, self.dtype = at, dtype

    def data_ptr(self) -> int:
        return self._at


class Binary:
    """Stands for the binary that Triton has chosen for a launch."""

    packed_metadata, function = ("metadata",), 1

    def __init__(self, kernel: JITFunction, given: dict[str, Any]) -> None:
        self.kernel, self.given, self.choice = kernel, given, choice(kernel, given)

    def run(self, *values: Any) -> None:
        """A launch without Triton: grid, stream, handles, and the values of the parameters."""
        global direct
        direct += 1
        given = dict(self.given)
        for name, value in zip(self.kernel.arg_names, values[9:], strict=True):
            first = given[name]
            given[name] = Address(value, first.dtype) if isinstance(first, Tensor) else value
        if choice(self.kernel, given) != self.choice:
            wrong.add(self.kernel.__name__)


def usual(kernel: JITFunction, *, grid: Any, warmup: bool, **given: Any) -> Binary:
    """A launch by Triton."""
    global asked
    asked += 1
    return Binary(kernel, given)


def lying(kind: str, tensor: Tensor, number: int) -> Tensor:
    """The numbers of a tensor where they are, or where a bucket has them, aligned or not."""
    if kind == "alone":
        return tensor
    memory = tensor.new_empty(tensor.numel() + 4)
    return memory[number % 4 :][: tensor.numel()].view(tensor.shape).copy_(tensor)


def steps() -> None:
    """Of all rules: small and large matrices, banks, ranks, gradients in buckets, changing rates."""
    shapes = ([(1, 1)], [(17, 33)] * 2, [(4, 64, 64)], [(140, 140)] * 2, [(3, 160, 160)])
    ways: list[dict[str, Any]] = [{"rank": k} for k in (1, 2, 8, 16)]
    ways += [{"factorization": "single_pass"}, {"capturable": True}, {"lr": torch.tensor(0.1)}]
    for rule in (SGD, RMSprop, AdamW, Lion):
        for own in shapes:
            for way in ways:
                for kind in ("alone", "bucket"):
                    dtype = torch.complex64 if way == {"rank": 2} else torch.float32
                    starts = [init.haar_(torch.empty(shape, dtype=dtype)) for shape in own]
                    weights = [projunn.UnitaryParameter(start) for start in starts]
                    optimizer = rule(weights, **{"lr": 0.1, "polish_every": 2} | way)
                    for number in range(4):
                        for weight in weights:
                            weight.grad = lying(kind, torch.randn_like(weight).detach(), number)
                        if "lr" not in way:
                            optimizer.param_groups[0]["lr"] = (0.1, 0, 1, 0.25)[number]
                        optimizer.step()


def layers() -> None:
    """Sketched layers, time loops in one launch and in one for each step, and convolutions."""
    models: list[tuple[nn.Module, tuple[int, ...]]] = []
    for n, rows, k in ((16, 1, 1), (33, 7, 2), (140, 32, 4), (64, 5, 16)):
        models.append((UnitaryLinear(n, 2 * n, sketch_rank=k), (rows, n)))
    for n, batch, steps in ((33, 3, 2), (190, 8, 7), (300, 1, 5), (512, 128, 4)):
        models.append((UnitaryRNN(5, n), (steps, batch, 5)))
    for size in ((8, 8), (5, 7), (32, 32), (37, 21)):
        models.append((UnitaryConv2d(4, 4, size), (3, 4, *size)))
    for model, shape in models:
        optimizer = SGD(model.parameters(), lr=1e-3)
        for number in range(3):
            optimizer.zero_grad()
            output = model(lying("bucket", torch.randn(shape), number))
            (output[0] if isinstance(output, tuple) else output).sum().backward()
            optimizer.step()


def main() -> None:
    """Train, print."""
    target = GPUTarget("cuda", 90, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    JITFunction.run = usual
    private.current_raw_stream = lambda device=None: 0
    backends._blocks.set((("interpret", "tests"),))  # on CPU tensors the way of a GPU
    steps()
    layers()
    print(json.dumps({"asked": asked, "direct": direct, "wrong": sorted(wrong)}))


if __name__ == "__main__":
    main()
