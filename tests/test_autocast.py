"""What steps, corrects or measures weights does the same inside of ``torch.autocast``, bit for bit."""

import copy
import warnings

import pytest
import torch
from torch import nn

import projunn
from projunn import diagnostics, init
from projunn.nn import (
    BlockUnitaryLinear,
    LocalUnitaryConv2d,
    OrthogonalFinetuning,
    UnitaryConv2d,
    UnitaryConvTranspose2d,
    UnitaryLinear,
    UnitaryRNN,
)
from projunn.noticing import estimated_defect
from projunn.optim import SGD, SGDG, AdamW, Isospectral, Lion, RMSprop
from projunn_kernels import factor

N = 12
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def weight(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return init.haar_(torch.empty(*(shape or (N, N)), dtype=dtype), generator)


def noise(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*(shape or (N, N)), dtype=dtype, generator=torch.Generator().manual_seed(seed))


def unitary(*shape, **options):
    return projunn.UnitaryParameter(weight(*shape), **options)


def retracted(retraction):
    return lambda: [projunn.retract(weight(), noise(N, 3), noise(N, 3, seed=2), retraction)]


def factored(method):
    def run():
        torch.manual_seed(0)
        return projunn.factorize(noise(), 3, method)

    return run


def projected():
    off = weight() + 0.1 * noise()
    assert projunn.project_(off) is off
    return [off]


def dense_of_factors():
    factors = projunn.FactoredTensor(noise(N, 3), noise(N, 3, seed=2))
    return [factors.to_dense(), torch.linalg.vector_norm(factors, 1), factors + noise(seed=3)]


def layer(kind, *arguments, **options):
    torch.manual_seed(0)
    return kind(*arguments, **options)


def plain_layers(kind, *arguments, **options):
    return lambda: [
        p.detach() for p in projunn.to_plain(layer(kind, *arguments, **options)).parameters()
    ]


def merged():
    found = layer(OrthogonalFinetuning, layer(nn.Linear, N, N), 4)
    with torch.no_grad():
        found.rotation.copy_(weight(3, 4, 4))
    return [found.merge().weight.detach()]


def constrained():
    found = projunn.constrain(layer(nn.LSTM, N, N), "weight_hh_l0")
    return [found.weight_hh_l0.detach()]


def converted():
    found = layer(nn.Linear, N, N)
    with torch.autocast("cpu", enabled=False):  # PyTorch's own decomposition has none in half precision
        torch.nn.utils.parametrizations.orthogonal(found)
    return [projunn.convert(found).weight.detach()]


def filters():
    found = layer(UnitaryConv2d, 3, 3, 6)
    found.weight.grad, found.own_weight.grad = (
        torch.ones_like(p) for p in (found.weight, found.own_weight)
    )
    found.project_gradient_(3)
    outside = found.energy_outside(3).detach()
    return [
        found.spatial_filter().detach(),
        found.weight.grad,
        outside,
        found.resized(5).weight.detach(),
    ]


def bounds():
    layers = [
        layer(LocalUnitaryConv2d, 3, 3, 3),
        layer(UnitaryConv2d, 3, 3, 6),
        nn.Flatten(),
        layer(UnitaryLinear, 108, N),
        layer(nn.Linear, N, N),
    ]
    return [torch.tensor([projunn.lipschitz_bound(one) for one in layers])]


FUNCTIONS = {
    **{f"retract-{name}": retracted(name) for name in ("exp", "polar", "cayley")},
    **{f"factorize-{name}": factored(name) for name in ("lsi", "column", "subspace", "svd")},
    "project": projected,
    "defect": lambda: [projunn.unitarity_defect(w) for w in (weight(), weight(2, N, 4), noise())],
    "energy": lambda: [diagnostics.captured_energy(noise(), 3)],
    "phases": lambda: [diagnostics.eigenphases(weight())],
    "haar": lambda: [weight()],
    "factored": dense_of_factors,
    "to_plain-linear": plain_layers(UnitaryLinear, N, N),
    "to_plain-blocks": plain_layers(BlockUnitaryLinear, 3, 4),
    "to_plain-convolution": plain_layers(UnitaryConv2d, 3, 3, 6),
    "to_plain-transposed": plain_layers(UnitaryConvTranspose2d, 3, 3, 6),
    "to_plain-recurrent": plain_layers(UnitaryRNN, 3, N, nonlinearity="relu"),
    "merge": merged,
    "constrain": constrained,
    "convert": converted,
    "filters": filters,
    "bounds": bounds,
}


def inside(function, half):
    with torch.autocast("cpu", half):
        return function()


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions(function, half):
    wanted, found = function(), inside(function, half)
    for a, b in zip(wanted, found, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


MODELS = {
    "dense": lambda: [unitary()],
    "bank": lambda: [unitary(), unitary(), unitary()],
    "tall": lambda: [unitary(N, 5)],
    "batch": lambda: [unitary(3, N, N)],
    "complex": lambda: [
        projunn.UnitaryParameter(weight(dtype=torch.complex64)),
        projunn.UnitaryParameter(torch.view_as_real(weight(dtype=torch.complex64)), pairs=True),
    ],
    "mixed": lambda: [unitary(), nn.Parameter(noise(N))],
    "large": lambda: [unitary(200, 200)],
}
OPTIMIZERS = {
    "sgd": (SGD, {}),
    "momentum": (SGD, {"momentum": 0.9}),
    "rank4": (AdamW, {"rank": 4}),
    "svd": (AdamW, {"rank": 2, "factorization": "svd"}),
    "column": (RMSprop, {"factorization": "column"}),
    "lsi": (RMSprop, {"factorization": "lsi", "retraction": "polar"}),
    "single_pass": (SGD, {"factorization": "single_pass", "momentum": 0.9}),
    "tangent": (AdamW, {"factorization": "tangent", "rank": 2}),
    "averages": (AdamW, {"averages": "tangent"}),
    "lion": (Lion, {"retraction": "cayley"}),
    "polished": (SGD, {"polish_every": 1}),
}


def stepped(make, kind, options):
    """The parameters and the state after three steps."""

    def run():
        torch.manual_seed(0)
        parameters = make()
        optimizer = kind(parameters, lr=0.1, **options)
        for seed in range(3):
            for p in parameters:
                p.grad = noise(*p.shape, dtype=p.dtype, seed=seed)
            optimizer.step()
        state = [value for p in parameters for value in optimizer.state[p].values()]
        return [*(p.detach() for p in parameters), *filter(torch.is_tensor, state)]

    return run


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps(model, optimizer):
    if (model, optimizer) == ("tall", "averages"):
        pytest.skip("only square matrices have averages of the tangent part")
    run = stepped(MODELS[model], *OPTIMIZERS[optimizer])
    for a, b in zip(run(), inside(run, torch.bfloat16), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("kind", "n", "options"),
    [
        (SGDG, N, {"stiefel": True, "momentum": 0.9}),
        (SGDG, 200, {"stiefel": True, "rank": 2, "momentum": 0.9}),
        (Isospectral, N, {"rank": 2, "momentum": 0.9}),
    ],
)
def test_steps_of_plain_matrices(kind, n, options):
    run = stepped(lambda: [nn.Parameter(weight(n, n)), nn.Parameter(noise(5))], kind, options)
    for a, b in zip(run(), inside(run, torch.bfloat16), strict=True):
        assert torch.equal(a, b)


def test_steps_of_sketched_gradients():
    """The gradients are made outside: a layer's backward has the precision of its forward."""

    def run():
        torch.manual_seed(0)
        net = UnitaryLinear(N, N, sketch_rank=4)
        optimizer = AdamW(net.parameters(), lr=0.1)
        for seed in range(3):
            with torch.autocast("cpu", enabled=False):
                net(noise(5, N, seed=seed)).square().sum().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in net.parameters()]

    for a, b in zip(run(), inside(run, torch.bfloat16), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sketch_rank", [None, 3])
def test_the_backward_of_a_recurrence(sketch_rank):
    """It is the same inside, where the loop of the forward computed in float32."""

    def run(where):
        net = layer(UnitaryRNN, 3, N, sketch_rank=sketch_rank)
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(noise(6, 5, 3))[0].square().sum()
            with torch.autocast("cpu", torch.bfloat16, enabled=where == "inside"):
                loss.backward()
        grad = net.weight_hh_l0.grad
        return grad.to_dense() if sketch_rank else grad

    assert torch.equal(run("inside"), run("outside"))


@pytest.mark.parametrize("kind", [SGD, SGDG])
def test_a_closure_runs_under_autocast(kind):
    p = nn.Parameter(weight())
    seen = []

    def closure():
        seen.append((p @ p).dtype)
        return 1.0

    with torch.autocast("cpu", torch.bfloat16):
        assert kind([p], lr=0.1).step(closure) == 1.0
        assert (p @ p).dtype == torch.bfloat16
    assert seen == [torch.bfloat16]


def test_no_false_alarms():
    """Loading, evaluating, and the first step look at weights, in full precision."""
    net = layer(UnitaryLinear, N, N)
    state = copy.deepcopy(net.state_dict())
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        net.load_state_dict(state)
        net.train().eval()
        optimizer = AdamW(net.parameters(), lr=0.1)
        net.weight.grad = noise()
        optimizer.step()


def test_state_of_dense_gradients_loads_into_sketched_ones():
    def run():
        dense, sketched = layer(UnitaryLinear, N, N), layer(UnitaryLinear, N, N, sketch_rank=2)
        optimizer, other = (AdamW(net.parameters(), lr=0.1) for net in (dense, sketched))
        dense.weight.grad = noise()
        optimizer.step()
        other.load_state_dict(optimizer.state_dict())
        return [other.state[sketched.weight][f"exp_avg_{side}"] for side in ("left", "right")]

    for a, b in zip(run(), inside(run, torch.bfloat16), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_steps(backend):
    def run():
        torch._dynamo.reset()
        parameters = [unitary(), nn.Parameter(noise(N))]
        optimizer = AdamW(parameters, lr=0.1)
        step = torch.compile(optimizer.step, backend=backend)
        for seed in range(2):
            for p in parameters:
                p.grad = noise(*p.shape, seed=seed)
            step()
        return [p.detach() for p in parameters]

    for a, b in zip(run(), inside(run, torch.bfloat16), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("function", [projunn.unitarity_defect, estimated_defect])
def test_compiled_diagnostics(function):
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert torch.equal(inside(lambda: compiled(weight()), torch.bfloat16), compiled(weight()))


@pytest.mark.parametrize("through", ["vmap", "autograd"])
def test_formulas(through):
    """What sees through operators to their formulas finds these in full precision too."""

    def run():
        if through == "vmap":
            return torch.vmap(factor)(weight(3, N, N), noise(3, N, 2))
        return factor(weight().requires_grad_(), noise(N, 2))

    for a, b in zip(run(), inside(run, torch.bfloat16), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_training_inside_of_autocast_stays_on_the_manifold(half):
    torch.manual_seed(0)
    net = nn.Sequential(UnitaryLinear(N, N), UnitaryLinear(N, N), BlockUnitaryLinear(3, 4))
    optimizer = AdamW(net.parameters(), lr=1e-2)
    for _ in range(100):
        with torch.autocast("cpu", half):
            optimizer.zero_grad()
            net(torch.randn(8, N)).square().mean().backward()
            optimizer.step()
    assert optimizer.skipped_steps() == 0
    assert max(projunn.unitarity_defect(p).max() for p in projunn.unitary_parameters(net)) < 1e-6
