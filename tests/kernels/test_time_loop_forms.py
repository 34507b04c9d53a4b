"""Every form of the time loop's kernels, with every tail, against float64."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import projunn
from projunn_kernels import recurrence
from projunn_kernels.backends import TooManyPrograms
from projunn_kernels.configs import choice
from projunn_kernels.configs.closed_form import candidates, closed_form
from projunn_kernels.configs.problem import Config, Device, Problem
from projunn_kernels.precision import matmul_precision
from projunn_kernels.tuning.binaries import ARCHITECTURES
from tests.time_loops import CASES, check, draw, pieces, small_weight

NAMES = ("recurrence", "recurrence_backward")
H100 = ARCHITECTURES["sm_90"]
SMALL = ARCHITECTURES["sm_86"]  # no cache for a part of W of 193 units
BUSY = replace(H100, processors=0)  # a batch of any size takes many waves of programs of one row


def configured(device, complex_, batch, n, k=1):
    return [closed_form(Problem(name, complex_, k, batch, n, 1), device) for name in NAMES]


def form(config):
    if config.rows == 1:
        return "row" if config.hold else "passing"
    return "block" if config.hold else "steps"


def compare(kernels, configs, complex_, nonlinearity, steps, batch, n, k=1):
    """With k = 2 factors are rounded to TF32.

    Where they are nothing jumps: it would be chance on which side a number is.
    """
    rounded = k == 2
    if rounded and nonlinearity in ("relu", "modrelu"):
        nonlinearity = "tanh"
    tensors = small_weight(draw(complex_, nonlinearity, steps, batch, n, torch.float32))
    given = choice.using(dict(zip(NAMES, configs, strict=True)))
    with given, matmul_precision("high" if k == 2 else "highest"):
        check(kernels, tensors, complex_, nonlinearity, floor=5e-3 if rounded else 1e-6)


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize(
    ("device", "steps", "batch", "n", "k", "wanted"),
    [
        (H100, 3, 5, 33, 1, "row"),
        (BUSY, 3, 17, 33, 1, "steps"),
        (BUSY, 3, 17, 33, 2, "block"),
        (SMALL, 2, 5, 193, 2, "steps"),
    ],
)
def test_every_nonlinearity_in_every_form(
    kernels, nonlinearity, complex_, device, steps, batch, n, k, wanted
):
    configs = configured(device, complex_, batch, n, k)
    assert {form(config) for config in configs} == {wanted}
    compare(kernels, configs, complex_, nonlinearity, steps, batch, n, k)


@pytest.mark.parametrize(
    ("steps", "batch", "n"),
    [
        (1, 1, 1), (3, 8, 7), (2, 17, 16), (50, 1, 9), (3, 5, 64), (2, 2, 100), (1, 3, 128),
        (3, 2, 129), (2, 5, 190), (2, 1, 192),
    ],
)  # fmt: skip
def test_rows(kernels, steps, batch, n):
    for complex_ in (False, True):
        if n <= 128 or not complex_:
            configs = configured(H100, complex_, batch, n)
            assert {form(config) for config in configs} == {"row"}
            compare(kernels, configs, complex_, "modrelu", steps, batch, n)


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize(("steps", "batch", "n"), [(1, 1, 193), (3, 5, 200), (2, 3, 256)])
def test_rows_of_which_a_part_passes(kernels, nonlinearity, complex_, steps, batch, n):
    if complex_:
        n = 129 + (n - 193)  # 129, 136 and 192
    configs = configured(H100, complex_, batch, n)
    assert {form(config) for config in configs} == {"passing"}
    compare(kernels, configs, complex_, nonlinearity, steps, batch, n)


@pytest.mark.parametrize(
    ("steps", "batch", "n"),
    [
        (1, 1, 1), (3, 8, 7), (2, 128, 16), (50, 5, 9), (3, 17, 64), (2, 8, 100), (3, 17, 128),
        (2, 5, 129), (3, 17, 190),
    ],
)  # fmt: skip
def test_blocks(kernels, steps, batch, n):
    for complex_ in (False, True):
        if n <= 128 or not complex_:
            configs = configured(BUSY, complex_, batch, n, k=2)
            assert {form(config) for config in configs} == {"block"}
            compare(kernels, configs, complex_, "modrelu", steps, batch, n, k=2)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("steps", "batch", "n"), [(1, 1, 193), (3, 5, 256), (2, 17, 257), (2, 9, 520)])
def test_steps(kernels, steps, batch, n, k):
    for complex_ in (False, True) if n < 256 else (False,):
        configs = configured(SMALL, complex_, batch, n, k)
        assert {form(config) for config in configs} == {"steps"}
        compare(kernels, configs, complex_, "modrelu", steps, batch, n, k)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        Config(1, 32, 4, hold=True),
        Config(1, 64, 8, hold=True),
        Config(1, 32, 4),
        Config(8, 32, 4, hold=True),
        Config(16, 64, 4, hold=True),
        Config(8, 16, 4, depth=16),
        Config(16, 32, 4, depth=16),
        Config(32, 16, 4, depth=32, stages=3),
    ],
    ids=str,
)
def test_every_tiling_gives_the_same(kernels, complex_, config):
    """Where the units do not fit one tile, W is held in four pieces."""
    for k in (1, 2) if form(config) == "steps" else (1,):
        compare(kernels, [config, config], complex_, "modrelu", 3, 9, 37, k)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [Config(1, 64, 4, hold=True), Config(8, 64, 4, hold=True)], ids=str)
def test_half_precision_is_held(kernels, kind, config):
    tensors = small_weight(draw(False, "tanh", 3, 9, 50, kind))
    with choice.using(dict.fromkeys(NAMES, config)):
        check(kernels, tensors, False, "tanh", floor=float(torch.finfo(kind).eps))


@pytest.mark.parametrize("config", [Config(1, 16, 4, hold=True), Config(8, 16, 4, hold=True)], ids=str)
def test_the_gradient_of_modrelus_bias_is_the_same_in_every_run(kernels, config):
    tensors = [t.to(kernels.device) for t in draw(False, "modrelu", 3, 20, 11, torch.float32)]
    cotangent = torch.randn_like(tensors[0])

    def run(own, *_):
        return recurrence(*own, "modrelu")[0]

    with kernels.backend(), choice.using(dict.fromkeys(NAMES, config)):
        first, again = (pieces(tensors, False, "modrelu", cotangent, run) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("device", [*ARCHITECTURES.values(), Device()], ids=lambda device: device.name)
def test_configurations_fit_every_gpu(device):
    """Few rows of the batch run one a program; what is held fits the shared memory."""
    for complex_ in (False, True):
        for k in (1, 2):
            for n in (1, 16, 33, 64, 96, 128, 129, 190, 192, 193, 512, 1024):
                for batch in (1, 128, 4096):
                    problem = Problem("recurrence", complex_, k, batch, n, 1)
                    config = closed_form(problem, device)
                    assert config == candidates(problem, device)[0]
                    held = n <= (128 if complex_ else 192)
                    if batch <= device.processors and held:
                        assert config.rows == 1
                    if form(config) == "passing":
                        assert 128 < n <= (192 if complex_ else 256)
                    if form(config) == "block":
                        assert k == 2
                        units = -(-n // 16) * 16
                        assert 4 * units**2 * (1 + complex_) <= device.shared_memory
                    elif form(config) == "steps" and k == 1:
                        assert config.depth == 16 * config.warps
                        panel = 4 * config.depth * (config.columns + config.rows) * (1 + complex_)
                        assert panel * (config.stages - 1) <= device.shared_memory
                    assert config.columns >= min(n, 16)


# The error of a state after T steps of an isometry: rounding adds up as a random walk does.
@pytest.mark.parametrize("complex_", [False, True])
def test_norms_over_ten_thousand_steps_on_a_cpu(complex_):
    assert drift("torch", torch.device("cpu"), complex_, steps=10_000, n=64) <= 1e-4


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("config", [Config(1, 16, 4, hold=True), Config(8, 16, 4, hold=True)], ids=str)
def test_norms_over_two_hundred_steps_of_the_kernels(kernels, complex_, config):
    with choice.using(dict.fromkeys(NAMES, config)):
        assert drift(kernels.name, kernels.device, complex_, steps=200, n=12) <= 2e-6


def drift(backend, device, complex_, steps, n):
    """The largest relative difference of the states' norms from the exact one, without nonlinearity."""
    dtype = torch.complex128 if complex_ else torch.float64
    weight = torch.linalg.qr(torch.randn(n, n, dtype=dtype)).Q
    initial = torch.randn(2, n, dtype=dtype)
    exact = initial.norm(dim=-1)
    arguments = [torch.zeros(steps, 2, n, dtype=dtype), initial, weight]
    if complex_:
        arguments = [torch.view_as_real(t) for t in arguments]
    with projunn.backend(backend):
        states = recurrence(*(t.float().to(device) for t in arguments), None, "identity")[0]
    states = states.cpu().double().reshape(steps, 2, -1)
    return ((states.norm(dim=-1) - exact) / exact).abs().max().item()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_beyond_the_addresses_of_a_step_is_left_to_pytorch(kernels, transposed):
    """Kernels have its places in 32 bits: they read outside of memory from 46,341 units on."""
    from projunn_kernels.time_loop.stepping import Panels

    whole, one = torch.zeros(1, 1, 1).expand(1, 46_341, 46_341), torch.zeros(1, 1, 46_341)
    with pytest.raises(TooManyPrograms):
        Panels(Config(16, 32, 4, depth=64), whole, one, {"SPLITS": 4 * transposed, "PRECISION": "ieee"})


@pytest.mark.interpreter_only
def test_the_backward_loop_of_panels_makes_no_tensor_in_vain(kernels):
    """Of the shape of a state: none is made for a gradient that the last product makes itself."""
    from projunn_kernels.time_loop.launch import backward

    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.empty_like.default:
                made.append(args[0].shape)
            return function(*args, **(kwargs or {}))

    steps, batch, n = 2, 3, 193
    config = configured(SMALL, False, batch, n, k=2)[1]
    assert form(config) == "steps"
    states = torch.rand(steps, batch, n)
    with choice.using({NAMES[1]: config}), matmul_precision("high"), kernels.backend(), Watch():
        backward(torch.ones_like(states), states, torch.eye(n), None, "tanh", None)
    assert made == [(steps, batch, n)]
