"""The RNN rows of ``make gpu``: a training step at T = 1000, batch 128, and the same as one CUDA graph.

Against the published loop and cuDNN's relu ``nn.RNN``, both with our values and our optimizer.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

import projunn
from bench.published import PublishedRNN
from projunn.nn import UnitaryRNN

STEPS, BATCH, INPUTS, CLASSES = 1000, 128, 10, 10


def rows(hidden: int, nonlinearity: str, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds of a training step of each, with the ratio to ours run eagerly."""
    x = torch.randn(STEPS, BATCH, INPUTS, device="cuda")
    y = torch.randint(CLASSES, (BATCH,), device="cuda")
    ours = UnitaryRNN(INPUTS, hidden, nonlinearity=nonlinearity, bias=False).cuda()
    models: dict[str, nn.Module] = {"UnitaryRNN": ours}
    published = PublishedRNN(INPUTS, hidden, nonlinearity).cuda()
    with torch.no_grad():
        published.recurrent_kernel.weight.copy_(ours.weight_hh_l0)
        published.input_kernel.weight.copy_(ours.weight_ih_l0)
    projunn.constrain(published.recurrent_kernel, "weight")
    models["published loop"] = published
    if nonlinearity == "relu":
        library = nn.RNN(INPUTS, hidden, nonlinearity="relu", bias=False).cuda()
        with torch.no_grad():
            library.weight_hh_l0.copy_(ours.weight_hh_l0)
            library.weight_ih_l0.copy_(ours.weight_ih_l0)
        models["cuDNN nn.RNN"] = projunn.constrain(library, "weight_hh_l0")
    steps = {name: _training_step(model, x, y, hidden) for name, model in models.items()}
    times: dict[str, float] = {}
    for name, step in steps.items():
        try:
            times[name] = _milliseconds(step, seconds)
            if name != "published loop":
                times[f"{name}, one CUDA graph"] = _milliseconds(_captured(step), seconds)
        except Exception as error:
            print(f"{name} H={hidden} {nonlinearity}: {type(error).__name__}: {error}")
    first = times.get("UnitaryRNN", float("nan"))
    shared = {"T": STEPS, "hidden": hidden, "batch": BATCH, "nonlinearity": nonlinearity}
    shared |= {"matmul_precision": torch.get_float32_matmul_precision()}
    shared |= {"cudnn_tf32": torch.backends.cudnn.allow_tf32}
    return [
        shared | {"what": name, "ms": round(ms, 4), "ratio_to_projunn": round(ms / first, 3)}
        for name, ms in times.items()
    ]


def _training_step(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, hidden: int
) -> Callable[[], torch.Tensor]:
    head = nn.Linear(hidden, CLASSES).cuda()
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = projunn.optim.RMSprop(parameters, lr=1e-3, capturable=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        output, _ = model(x)
        loss = nn.functional.cross_entropy(head(output[-1]), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _captured(step: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """docs/cuda-graphs.md; the state of the optimizer is there by now."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _milliseconds(step: Callable[[], object], seconds: float) -> float:
    """Median of up to 20 timed steps after two for warm-up, waiting for each: a training loop's pace."""
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    taken, begun = [], time.perf_counter()
    while len(taken) < 3 or (len(taken) < 20 and time.perf_counter() - begun < seconds):
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - started))
    return median(taken)
