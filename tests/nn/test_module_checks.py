"""PyTorch's generic checks of modules, on ours: each is described by a ``ModuleInfo`` as PyTorch's are.

The checks are those that PyTorch's own suite runs for all of ``torch.nn``: what a constructor's
``device`` and ``dtype`` give, the forward against a formula, copies, files, first and second
derivatives, strides, memory formats, training mode and moves.
"""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from projunn.nn import (
    BlockUnitaryLinear,
    GroupSort,
    MaxMin,
    ModReLU,
    UnitaryConv1d,
    UnitaryConv2d,
    UnitaryConv3d,
    UnitaryConvTranspose2d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
)
from projunn_kernels import apply_nonlinearity
from tests.convolutions import by_filter
from tests.torch_internals import internal

pytestmark = pytest.mark.requires("expecttest", "numpy")


def linear(module, parameters, x):
    y = x.to(module.matrix.dtype) @ module.matrix.mT
    return y if module.bias is None else y + module._numbers(module.bias)


def blocks(module, parameters, x):
    y = x
    for i, factor in enumerate(module._numbers(module.weight)):
        if i:
            y = y.unflatten(-1, (module.num_blocks, -1)).mT.flatten(-2)
        y = y @ torch.block_diag(*factor).mT
    return y + module._numbers(module.bias)


def convolution(module, parameters, x):
    return by_filter(module, x)


def recurrence(module, parameters, x, hx=None):
    weight, bias = module._numbers(module.weight_ih_l0), module._numbers(module.bias_ih_l0)
    inner = module._numbers(module.weight_hh_l0)
    offset = getattr(module, "modrelu_bias_l0", None)
    h = torch.zeros(x.shape[1], module.hidden_size, dtype=inner.dtype) if hx is None else hx[0]
    states = []
    for u in x:
        z = u.to(inner.dtype) @ weight.mT + bias + h @ inner.mT
        h = apply_nonlinearity(z, offset, module.nonlinearity)
        states.append(h)
    return torch.stack(states), h.unsqueeze(0)


# name: (class, positional and keyword arguments of the constructor, shapes of the inputs, formula)
CASES = {
    "UnitaryLinear": (UnitaryLinear, (4, 6), {}, [(3, 4)], linear),
    "UnitaryLinear, wide": (UnitaryLinear, (6, 4), {"bias": False}, [(2, 3, 6)], linear),
    "UnitaryLinear, sketched": (UnitaryLinear, (4, 6), {"sketch_rank": 2}, [(3, 4)], linear),
    "BlockUnitaryLinear": (BlockUnitaryLinear, (2, 3), {"num_factors": 2}, [(3, 6)], blocks),
    "UnitaryConv1d": (UnitaryConv1d, (2, 3, 5), {}, [(2, 2, 5)], convolution),
    "UnitaryConv2d": (UnitaryConv2d, (2, 2, (4, 3)), {}, [(2, 2, 4, 3)], convolution),
    "UnitaryConv2d, strided": (UnitaryConv2d, (1, 4, 4), {"stride": 2}, [(2, 1, 4, 4)], convolution),
    "UnitaryConv2d, grouped": (
        UnitaryConv2d,
        (2, 4, (4, 3)),
        {"groups": 2, "dilation": (2, 1)},
        [(2, 2, 4, 3)],
        convolution,
    ),
    "UnitaryConvTranspose2d": (
        UnitaryConvTranspose2d,
        (4, 2, (2, 3)),
        {"stride": 2, "groups": 2},
        [(2, 4, 2, 3)],
        convolution,
    ),
    "UnitaryConv3d": (UnitaryConv3d, (2, 1, (2, 3, 2)), {}, [(2, 2, 2, 3, 2)], convolution),
    "UnitaryRNN": (UnitaryRNN, (3, 4), {}, [(4, 2, 3)], recurrence),
    "UnitaryRNN, tanh": (
        UnitaryRNN,
        (3, 4),
        {"nonlinearity": "tanh"},
        [(4, 2, 3), (1, 2, 4)],
        recurrence,
    ),
    "UnitaryRNNCell": (UnitaryRNNCell, (3, 4), {}, [(2, 3), (2, 4)], None),
    "ModReLU": (ModReLU, (4,), {}, [(3, 4)], None),
    "GroupSort": (GroupSort, (3,), {}, [(2, 6, 2)], None),
    "MaxMin": (MaxMin, (), {}, [(2, 4, 2)], None),
}
REAL_ONLY = {"ModReLU", "GroupSort", "MaxMin"}
WITHOUT_PARAMETERS = {"GroupSort", "MaxMin"}


@pytest.fixture(scope="module")
def common():
    """The module of PyTorch's suite."""
    return internal("common_modules")


def info_of(common, name, dtype):
    """PyTorch's description of a module, and its inputs."""
    cls, args, options, shapes, formula = CASES[name]

    def inputs(module_info, device, dtype, requires_grad, training, **_):
        given = (
            common.make_tensor(s, device=device, dtype=dtype, requires_grad=requires_grad)
            for s in shapes
        )
        factory = {} if name in WITHOUT_PARAMETERS else {"device": device, "dtype": dtype}
        constructor = common.FunctionInput(*args, **options, **factory)
        return [common.ModuleInput(constructor, common.FunctionInput(*given), reference_fn=formula)]

    return common.ModuleInfo(cls, module_inputs_func=inputs, dtypes=(dtype,))


class Case:
    def __init__(self, common, name, dtype, requires_grad=False):
        self.info = info_of(common, name, dtype)
        self.dtype = dtype
        (self.input,) = self.info.module_inputs_func(
            self.info, "cpu", dtype, requires_grad, training=True
        )
        made = self.input.constructor_input
        self.module = self.info.module_cls(*made.args, **made.kwargs)
        self.x = self.input.forward_input.args


def tensors(result):
    return list(result) if isinstance(result, tuple) else [result]


def total(result):
    return sum(y.abs().square().sum() + y.abs().sum() for y in tensors(result))


def backward(module, x):
    """Outputs and gradients."""
    module.zero_grad()
    x = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in x]
    y = tensors(module(*x))
    total(tuple(y)).backward()
    grads = [t.grad for t in (*x, *module.parameters())]
    return [*(t.detach() for t in y), *(g.to_dense() for g in grads if g is not None)]


def assert_same(got, expected):
    """Equal to rounding of each tensor's largest entry: sums in another order cancel differently."""
    for a, b in zip(got, expected, strict=True):
        largest = b.abs().max().item() if b.numel() else 0
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * (1 + largest))


def dtypes(name, real, complex):
    return [real] if name in REAL_ONLY else [real, complex]


def every_case(real, complex):
    return pytest.mark.parametrize(
        ("name", "dtype"), [(name, d) for name in CASES for d in dtypes(name, real, complex)], ids=str
    )


single = every_case(torch.float32, torch.complex64)
double = every_case(torch.float64, torch.complex128)


@double
def test_the_forward_is_the_formula(common, name, dtype):
    case = Case(common, name, dtype)
    assert str(case.module)
    assert repr(case.module).startswith(case.info.module_cls.__name__)
    if case.input.reference_fn is not None:
        expected = case.input.reference_fn(case.module, *case.x)
        for found, wanted in zip(tensors(case.module(*case.x)), tensors(expected), strict=True):
            torch.testing.assert_close(found, wanted)


@single
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.requires_cuda)])
def test_a_constructor_takes_device_and_dtype(common, name, dtype, device):
    case = Case(common, name, dtype)
    made = case.input.constructor_input
    if "device" not in made.kwargs:
        return
    for wanted in dtypes(name, torch.float64, torch.complex128):
        module = case.info.module_cls(*made.args, **{**made.kwargs, "device": device, "dtype": wanted})
        for parameter in module.parameters():
            assert parameter.dtype == wanted.to_real()
            assert parameter.device.type == device
        y = tensors(module(*(t.to(device, wanted) for t in case.x)))
        assert {t.dtype for t in y} == {wanted}


@single
def test_copies_and_files_give_the_same_module(common, name, dtype):
    case = Case(common, name, dtype)
    expected = backward(case.module, case.x)
    case.module.zero_grad()
    file = io.BytesIO()
    torch.save(case.module.state_dict(), file)
    file.seek(0)
    made = case.input.constructor_input
    loaded = case.info.module_cls(*made.args, **made.kwargs)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for module in (copy.deepcopy(case.module), pickle.loads(pickle.dumps(case.module)), loaded):
        assert {type(p) for p in module.parameters()} == {type(p) for p in case.module.parameters()}
        # The sketch of a new module starts from the same basis, one for each shape.
        torch.testing.assert_close(backward(module, case.x), expected, rtol=0, atol=0)


@double
def test_first_and_second_derivatives(common, name, dtype):
    """With respect to the input and to all parameters."""
    case = Case(common, name, dtype, requires_grad=True)
    names = [n for n, p in case.module.named_parameters() if p.numel()]
    values = [p.detach().clone().requires_grad_() for p in case.module.parameters() if p.numel()]

    def function(*given):
        x, p = given[: len(case.x)], given[len(case.x) :]
        result = torch.func.functional_call(case.module, dict(zip(names, p, strict=True)), x)
        return tuple(tensors(result))

    assert torch.autograd.gradcheck(
        function, (*case.x, *values), fast_mode=True, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(function, (*case.x, *values), fast_mode=True)


@single
def test_inputs_and_gradients_may_be_strided(common, name, dtype):
    case = Case(common, name, dtype)
    module, x = case.module, [t.detach() for t in case.x]
    expected = backward(module, x)
    # every second number of a larger tensor; axes stored in another order; expanded
    apart = [t.repeat_interleave(2, -1)[..., ::2] for t in x]
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in x]
    for strided in (apart, turned):
        assert_same(backward(module, strided), expected)
    y = tensors(module(*x))
    cotangents = [torch.randn_like(t) for t in y]
    grads = []
    for made in (cotangents, [g.repeat_interleave(2, -1)[..., ::2] for g in cotangents]):
        module.zero_grad()
        torch.autograd.backward(tensors(module(*x)), made) if list(module.parameters()) else None
        grads.append([p.grad.to_dense() for p in module.parameters() if p.grad is not None])
    assert_same(*grads)


@single
def test_channels_last_input_gives_the_same(common, name, dtype):
    case = Case(common, name, dtype)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    x = [t.contiguous(memory_format=formats.get(t.ndim, torch.contiguous_format)) for t in case.x]
    assert_same(backward(case.module, x), backward(case.module, case.x))


@single
def test_training_and_evaluation_are_alike(common, name, dtype):
    case = Case(common, name, dtype)
    assert not case.info.train_and_eval_differ
    trained = tensors(case.module.train()(*case.x))
    torch.testing.assert_close(tensors(case.module.eval()(*case.x)), trained)
    assert not any(m.training for m in case.module.modules())
    assert isinstance(case.module, nn.Module)


@single
@pytest.mark.requires_cuda
def test_a_gpu_computes_the_same(common, name, dtype):
    case = Case(common, name, dtype)
    expected = backward(case.module, case.x)
    found = backward(case.module.to("cuda"), [t.to("cuda") for t in case.x])
    torch.testing.assert_close([t.cpu() for t in found], expected, rtol=1e-3, atol=1e-3)
