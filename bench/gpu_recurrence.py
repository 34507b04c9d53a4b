"""The RNN's part of ``make gpu``: the time loop against float64, a training step against two peers.

checks    all states and gradients, each by float32 PyTorch's error
rows      a training step at T = 1000, batch 128, and the same as one CUDA graph, against the published
          loop and cuDNN's relu ``nn.RNN``, both with our values and our optimizer
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import projunn
from bench.bench_recurrence import whole_step
from bench.gpu_machine import Machine
from bench.published import PublishedRNN
from projunn.nn import UnitaryRNN
from projunn_kernels import recurrence

STEPS, BATCH, INPUTS = 1000, 128, 10


def check_cases(
    on: Machine, share: Callable[[Tensor, Tensor, Tensor], float], small: bool
) -> Iterator[tuple[str, Callable[[], float]]]:
    """Names, and what gives the error in units of what is allowed."""
    for n in (5, 33) if small or on.dry else (5, 33, 64, 190, 512):
        for pairs in (False, True):
            for nonlinearity in ("tanh", "modrelu") if pairs or on.dry else ("tanh", "modrelu", "relu"):
                name = f"time loop {nonlinearity} {'complex' if pairs else 'real'} {n}"
                yield name, _case(on, share, n, pairs, nonlinearity)


def _case(on: Machine, share: Any, n: int, pairs: bool, nonlinearity: str) -> Callable[[], float]:
    def case() -> float:
        pair = (2,) * pairs
        shapes = ((6, 18, n, *pair), (18, n, *pair), (n, n, *pair), (n,), (6, 18, n, *pair))
        x, h, w, b, g = (torch.randn(shape) for shape in shapes)
        if pairs and nonlinearity == "tanh":
            # |Im z| stays below 1.1.  Nearer to the poles of tanh, +-i pi/2, plain PyTorch in float32 is
            # off by as much as anything, and the check would say nothing.
            x, h, w = 0.2 * x, 0.2 * h, 0.5 * w
        values = (x, h, w / (n * (1 + pairs)) ** 0.5, 0.1 * b)

        def everything(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
            there = [t.to(device, dtype).requires_grad_() for t in values]
            bias = there[3] if nonlinearity == "modrelu" else None
            states, _ = recurrence(*there[:3], bias, nonlinearity)
            wanted = there if bias is not None else there[:3]
            return [states.detach(), *torch.autograd.grad(states, wanted, g.to(states))]

        exact = everything(torch.float64, torch.device("cpu"))
        ours = everything(torch.float32, on.device)
        with projunn.backend("torch"):
            plain = everything(torch.float32, on.device)
        return max(share(a, b, c) for a, b, c in zip(ours, plain, exact, strict=True))

    return case


def rows(on: Machine, hidden: int, nonlinearity: str, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds of a training step of each, with the ratio to ours run eagerly."""
    steps, batch = (3, 4) if on.dry else (STEPS, BATCH)
    x = torch.randn(steps, batch, INPUTS, device=on.device)
    ours = UnitaryRNN(INPUTS, hidden, nonlinearity=nonlinearity, bias=False).to(on.device)
    models: dict[str, nn.Module] = {"UnitaryRNN": ours}
    published = PublishedRNN(INPUTS, hidden, nonlinearity).to(on.device)
    with torch.no_grad():
        published.recurrent_kernel.weight.copy_(ours.weight_hh_l0)
        published.input_kernel.weight.copy_(ours.weight_ih_l0)
    projunn.constrain(published.recurrent_kernel, "weight")
    models["published loop"] = published
    if nonlinearity == "relu":
        library = nn.RNN(INPUTS, hidden, nonlinearity="relu", bias=False).to(on.device)
        with torch.no_grad():
            library.weight_hh_l0.copy_(ours.weight_hh_l0)
            library.weight_ih_l0.copy_(ours.weight_ih_l0)
        models["cuDNN nn.RNN"] = projunn.constrain(library, "weight_hh_l0")
    calls = {
        name: whole_step(model, x, hidden, lr=1e-3, capturable=not on.dry)
        for name, model in models.items()
    }
    times: dict[str, float] = {}
    for name, step in calls.items():
        try:
            times[name] = on.step_time(step, seconds)
            if name != "published loop":
                times[f"{name}, one CUDA graph"] = on.step_time(on.captured(step), seconds)
        except Exception as error:
            on.leave_out(f"{name} H={hidden} {nonlinearity}", error)
    first = times.get("UnitaryRNN", float("nan"))
    shared = {"T": steps, "hidden": hidden, "batch": batch, "nonlinearity": nonlinearity}
    shared |= {"matmul_precision": torch.get_float32_matmul_precision()}
    shared |= {"cudnn_tf32": torch.backends.cudnn.allow_tf32}
    return [
        shared | {"what": name, "ms": round(ms, 4), "ratio_to_projunn": round(ms / first, 3)}
        for name, ms in times.items()
    ]
