"""What PyTorch users do to modules, done to each kind of ours: it works.

`ROWS` has what is done, and `COLUMNS` the modules.  Numbers are compared in float64: derivatives with
differences, everything else with what the module itself computes.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, functional
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import projunn
from projunn.factored import FactoredTensor
from projunn.nn import (
    BlockUnitaryLinear,
    ModReLU,
    UnitaryConv1d,
    UnitaryConv2d,
    UnitaryLinear,
    UnitaryRNN,
)

REAL = torch.float64


def rnn(dtype, **options):
    return UnitaryRNN(3, 4, dtype=dtype, batch_first=True, **options)


def conv(dtype, **options):
    return UnitaryConv2d(2, 3, (4, 3), dtype=dtype, **options)


def blocks(dtype, **options):
    return BlockUnitaryLinear(2, 2, num_factors=2, dtype=dtype, **options)


# Each case makes a module of a real dtype, and has the shape of its input.
COLUMNS = {
    "Linear": [
        (lambda real: UnitaryLinear(4, 5, dtype=real), (2, 4)),
        (blocks, (2, 4)),
        (lambda real: ModReLU(4, dtype=real), (2, 4)),
    ],
    "RNN": [(rnn, (2, 4, 3)), (lambda real: rnn(real, num_layers=2, nonlinearity="tanh"), (2, 3, 3))],
    "Conv": [
        (conv, (2, 2, 4, 3)),
        (lambda real: UnitaryConv2d(1, 4, 4, stride=2, dtype=real), (2, 1, 4, 4)),
        (lambda real: UnitaryConv1d(2, 2, 5, dtype=real), (2, 2, 5)),
    ],
    "constrained": [(lambda real: projunn.constrain(nn.Linear(4, 4, dtype=real)), (2, 4))],
    "sketched": [  # with so many columns that the sketch is exact
        (lambda real: UnitaryLinear(4, 5, dtype=real, sketch_rank=2), (2, 4)),
        (lambda real: blocks(real, sketch_rank=2), (2, 4)),
        (lambda real: rnn(real, sketch_rank=4), (2, 4, 3)),
        (lambda real: conv(real, sketch_rank=2), (2, 2, 4, 3)),
        (lambda real: rnn(real.to_complex(), sketch_rank=4), (2, 4, 3)),
    ],
    "complex": [
        (lambda real: UnitaryLinear(4, 5, dtype=real.to_complex()), (2, 4)),
        (lambda real: blocks(real.to_complex()), (2, 4)),
        (lambda real: rnn(real.to_complex()), (2, 4, 3)),
        (lambda real: rnn(real.to_complex(), nonlinearity="tanh"), (2, 4, 3)),
        (lambda real: conv(real.to_complex()), (2, 2, 4, 3)),
    ],
}


class Output(nn.Module):
    """The module's first output in real numbers, so that every case is a function of real numbers."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        y = self.module(x)
        y = y[0] if isinstance(y, tuple) else y
        return torch.view_as_real(y) if y.is_complex() else y


def close(found, expected, tolerance=1e-9):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def dense(tensor):
    return tensor.to_dense() if isinstance(tensor, FactoredTensor) else tensor


def parameters(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def loss(module):
    """A scalar function of parameters and input, whose third derivatives do not vanish."""
    return lambda p, x: (functional_call(module, p, (x,)) ** 3).sum()


def gradients(module, x, call=None):
    """The output, and the gradients by input and parameters, as a training step has them."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = (module if call is None else call)(x)
    (y**3).sum().backward()
    return [y.detach(), x.grad, *(dense(p.grad) for p in module.parameters())]


def exact_gradients(module, x):
    """`gradients` with a dense gradient in the place of a sketched one."""
    p, x = [t.clone().requires_grad_() for t in parameters(module).values()], x.clone().requires_grad_()
    names = dict(zip(parameters(module), p, strict=True))
    return torch.autograd.grad(loss(module)(names, x), [x, *p])


def differences(function, point, direction, step=1e-6):
    """The derivative of ``function`` along a direction, by central differences."""
    ahead, back = (
        function(*(p + sign * step * d for p, d in zip(point, direction, strict=True)))
        for sign in (1, -1)
    )
    return (ahead - back) / (2 * step)


def along(module, x):
    """The module as a function of input and parameters, a point, and a direction there."""
    names = list(parameters(module))
    point = (x, *parameters(module).values())

    def function(x, *values):
        return functional_call(module, dict(zip(names, values, strict=True)), (x,))

    return function, point, tuple(torch.randn_like(p) for p in point)


def jvp(module, x):
    function, point, direction = along(module, x)
    _, found = torch.func.jvp(function, point, direction)
    _, linear = torch.func.linearize(function, *point)
    expected = differences(function, point, direction)
    close([found, linear(*direction)], [expected, expected], 1e-7)


def dual_numbers(module, x):
    function, point, direction = along(module, x)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, d) for p, d in zip(point, direction, strict=True)]
        found = forward_ad.unpack_dual(function(*duals)).tangent
    close([found], [differences(function, point, direction)], 1e-7)


def jacfwd(module, x):
    expected = functional.jacobian(module, x)
    strategy = functional.jacobian(module, x, strategy="forward-mode", vectorize=True)
    close([torch.func.jacfwd(module)(x), strategy], [expected, expected])


def jacrev(module, x):
    expected = torch.stack(
        [differences(module, (x,), (e,)) for e in torch.eye(x.numel(), dtype=REAL).view(-1, *x.shape)],
        -1,
    )
    found = torch.func.jacrev(module)(x)
    close(
        [found.flatten(-x.ndim), functional.jacobian(module, x, vectorize=True)], [expected, found], 1e-7
    )


def vmap(module, x):
    many = torch.stack([x, 2 * x, -x])
    each = torch.stack([module(one) for one in many])
    close(
        [torch.vmap(module)(many), torch.vmap(module, 1, 1)(many.movedim(0, 1)).movedim(1, 0)],
        [each, each],
    )


def func_grad(module, x):
    found = torch.func.grad(loss(module), (0, 1))(parameters(module), x)
    close([found[1], *found[0].values()], exact_gradients(module, x))


def per_sample_gradients(module, x):
    found = torch.vmap(torch.func.grad(loss(module)), (None, 0))(parameters(module), x.unsqueeze(1))
    each = [exact_gradients(module, one.unsqueeze(0))[1:] for one in x]
    close(found.values(), [torch.stack(of_one) for of_one in zip(*each, strict=True)])


def hessian(module, x):
    def scalar(x):
        return loss(module)(parameters(module), x)

    found = torch.func.hessian(scalar)(x)
    forward = functional.hessian(scalar, x, vectorize=True, outer_jacobian_strategy="forward-mode")
    slow = functional.hessian(scalar, x)
    close([found, forward], [slow, slow])
    direction = torch.randn_like(x)
    by_differences = differences(torch.func.grad(scalar), (x,), (direction,))
    close([torch.tensordot(found, direction, x.ndim)], [by_differences], 1e-6)


def double_backward(module, x):
    function, point, _ = along(module, x)
    inputs = [p.clone().requires_grad_() for p in point]
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    # As it is trained with a penalty on the gradient by the input, through the module's own parameters.
    x = x.clone().requires_grad_()
    module.zero_grad()
    (by_input,) = torch.autograd.grad((module(x) ** 3).sum(), x, create_graph=True)
    by_input.square().sum().backward()
    found = [dense(p.grad) for p in module.parameters()]

    def penalty(p):
        return torch.func.grad(loss(module), 1)(p, x.detach()).square().sum()

    close(found, torch.func.grad(penalty)(parameters(module)).values())


def checkpointing(module, x):
    expected = gradients(module, x)
    for reentrant in (False, True):
        found = gradients(module, x, lambda x, r=reentrant: checkpoint(module, x, use_reentrant=r))
        close(found, expected)


def saved_tensor_hooks(module, x):
    expected = gradients(module, x)
    with torch.autograd.graph.save_on_cpu():
        close(gradients(module, x), expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: [t.clone()], lambda kept: kept[0]):
        close(gradients(module, x), expected)


def autocast(module, x):
    expected = gradients(module, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(module, x)
    for one, other in zip(found, expected, strict=True):
        close(
            [one.float()], [other], 0.1 * max(1.0, other.abs().amax().item() if other.numel() else 0.0)
        )


def compiled(module, x):
    torch.compiler.reset()
    found = gradients(module, x, torch.compile(module, fullgraph=True, backend="aot_eager"))
    close(found, gradients(module, x))


def export(module, x, strict=False):
    many = torch.cat([x, 2 * x, -x])
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (x,), dynamic_shapes=sizes, strict=strict)
    found = [program.module()(many), program.run_decompositions().module()(many)]
    close(found, [module(many)] * 2)


def strict_export(module, x):
    export(module, x, strict=True)


def onnx(module, x):
    import onnxruntime

    many = torch.cat([x, 2 * x, -x])
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(module, (x,), dynamic_shapes=sizes, dynamo=True, verbose=False)
    operators = {node.domain for node in program.model.graph}
    assert operators <= {""}  # of ONNX itself
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: many.numpy()})
    close([torch.from_numpy(found)], [module(many).detach()], 1e-5)


def jit_trace(module, x):
    many = torch.cat([x, 2 * x, -x])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        close([torch.jit.trace(module, (x,))(many)], [module(many)])


ROWS = {
    "torch.func.jvp, linearize": jvp,
    "forward_ad": dual_numbers,
    "jacfwd": jacfwd,
    "jacrev": jacrev,
    "vmap": vmap,
    "torch.func.grad": func_grad,
    "per-sample gradients": per_sample_gradients,
    "hessian": hessian,
    "double backward": double_backward,
    "checkpoint": checkpointing,
    "saved-tensor hooks": saved_tensor_hooks,
    "autocast": autocast,
    "torch.compile(fullgraph=True)": compiled,
    "torch.export.export": export,
    "torch.export.export(strict=True)": strict_export,
    "torch.jit.trace": jit_trace,
    "torch.onnx.export": onnx,
}
SINGLE = {"autocast", "torch.onnx.export"}  # done in float32
# Slow, and the same for all cases of a column: tried on the first.
SLOW = {("torch.export.export(strict=True)", column) for column in COLUMNS}
SLOW |= {("torch.onnx.export", "sketched")}


def rows():
    for row in ROWS:
        needs = ["onnx", "onnxscript", "onnxruntime"] if row == "torch.onnx.export" else []
        yield pytest.param(row, marks=[pytest.mark.requires(*needs)])


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", list(rows()))
def test_it_works(row, column):
    dtype = torch.float32 if row in SINGLE else REAL
    for make, shape in COLUMNS[column][: 1 if (row, column) in SLOW else None]:
        module, x = Output(make(dtype)).eval(), torch.randn(shape, dtype=dtype)
        ROWS[row](module, x)
