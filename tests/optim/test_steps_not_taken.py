"""A step not taken leaves the weight as it was, and all else where its gradient is not finite."""

import copy

import pytest
import torch

import projunn
from projunn import matrix_view, optim
from projunn.nn import BlockUnitaryLinear, select_blocks
from projunn.optim.options import FACTORIZATIONS
from tests.dense import defect

RULES = {
    "SGD": {"momentum": 0.9, "dampening": 0.5},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "AdamW": {"amsgrad": True},
    "Lion": {},
}
KINDS = pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)


@pytest.fixture(params=RULES)
def rule(request):
    cls, options = getattr(optim, request.param), RULES[request.param]
    return lambda parameters, **more: cls(parameters, **{"lr": 0.3, **options, **more})


def bank(*batch, m=4, n=4, dtype=torch.float32):
    return projunn.UnitaryParameter(projunn.init.haar_(torch.empty(*batch, m, n, dtype=dtype)))


def twin(p):
    return projunn.UnitaryParameter(p.detach().clone(), pairs=p.pairs, blocks=p.blocks)


def step(optimizer, p, gradient):
    p.grad = gradient.clone()
    optimizer.step()


@KINDS
@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_a_skipped_matrix_and_its_state_keep_every_bit_and_the_others_are_polished(
    rule, dtype, factorization
):
    weight = bank(3, dtype=dtype)
    optimizer = rule([weight], polish_every=1, factorization=factorization)
    step(optimizer, weight, torch.randn_like(weight))
    with torch.no_grad():
        weight.mul_(1 + 3e-5)  # what a polish would see
    before, gradient = weight.detach().clone(), torch.randn_like(weight)
    gradient[1, 2, 3] = torch.nan
    state = copy.deepcopy(optimizer.state[weight])
    step(optimizer, weight, gradient)
    assert torch.equal(weight[1], before[1])
    for name in state.keys() - {"step", "skipped", "missed"}:
        assert torch.equal(optimizer.state[weight][name][1], state[name][1]), name
    assert defect(weight.detach()[[0, 2]]) < 1e-5
    step(optimizer, weight, torch.randn_like(weight))
    assert defect(weight.detach()) < 1e-5
    assert optimizer.skipped_steps() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW"])
def test_a_skipped_matrix_of_a_sketched_layer_is_not_polished(name, dtype):
    layer = BlockUnitaryLinear(3, 4, False, dtype=dtype, sketch_rank=2)
    optimizer = getattr(optim, name)(layer.parameters(), lr=0.1, polish_every=1)
    x = torch.randn(9, 12, dtype=dtype)
    for bad in (False, True):
        with torch.no_grad():
            layer.weight.mul_(1 + 3e-5 if bad else 1)
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        layer(x).abs().square().mul(torch.linspace(0, 1, 12)).sum().backward()
        if bad:
            layer.weight.grad.left[0, 1, 2, 0] = torch.nan
        optimizer.step()
    assert torch.equal(layer.weight[0, 1], before[0, 1])
    assert defect(matrix_view(layer.weight).detach()[0, [0, 2]]) < 1e-5


@KINDS
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
def test_the_first_step_after_skipped_ones_is_a_first_step(rule, dtype, batch):
    weight = bank(*batch, dtype=dtype)
    fresh = twin(weight)
    late, punctual = (rule([p], polish_every=0, factorization="svd", rank=4) for p in (weight, fresh))
    for _ in range(10):
        step(late, weight, torch.full_like(weight, torch.nan))
    for _ in range(3):
        gradient = torch.randn_like(weight)
        step(late, weight, gradient)
        step(punctual, fresh, gradient)
        torch.testing.assert_close(weight, fresh, rtol=0, atol=2e-6)
    assert late.state[weight]["step"] == 10 + 3


@KINDS
def test_each_matrix_of_a_bank_counts_its_own_steps(rule, dtype):
    """Matrix i has gradients that are not finite in the first i steps."""
    weight = bank(4, dtype=dtype)
    parts = [projunn.UnitaryParameter(matrix.clone()) for matrix in weight.detach()]
    options = {"polish_every": 0, "factorization": "svd", "rank": 4, "unitary_lr": 3e-4}
    optimizer, singles = rule([weight], **options), [rule([p], **options) for p in parts]
    for t in range(6):
        gradient = torch.randn_like(weight)
        for i, (single, p) in enumerate(zip(singles, parts, strict=True)):
            if t >= i:
                step(single, p, gradient[i])
            else:
                gradient[i, 0, 0] = torch.nan
        step(optimizer, weight, gradient)
    for i, p in enumerate(parts):
        torch.testing.assert_close(weight[i], p, rtol=0, atol=2e-6)
    assert optimizer.skipped_steps() == 1 + 2 + 3


def test_counts_of_sketched_steps_are_those_of_the_steps_that_were_taken():
    layers = [BlockUnitaryLinear(2, 4, False, sketch_rank=4) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    late, punctual = (optim.AdamW(m.parameters(), lr=0.3, rank=4, polish_every=0) for m in layers)

    def gradient(layer, x):
        layer.zero_grad()
        layer(x).square().mul(torch.linspace(0, 1, 8)).sum().backward()

    for _ in range(10):
        gradient(layers[0], torch.full((5, 8), torch.nan))
        late.step()
    for _ in range(3):
        x = torch.randn(20, 8)
        for layer, optimizer in zip(layers, (late, punctual), strict=True):
            gradient(layer, x)
            optimizer.step()
    torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=0, atol=1e-5)
    assert late.skipped_steps() == 20


@pytest.mark.parametrize(("momentum", "least", "most"), [(0.0, 1, 1), (0.9, 30, 70)])
def test_a_huge_finite_gradient_costs_the_steps_that_the_guide_says(momentum, least, most):
    torch.manual_seed(0)
    weight = projunn.UnitaryParameter(projunn.init.haar_(torch.empty(8, 8)))
    constant = torch.randn(8, 8)
    optimizer = optim.SGD([weight], lr=0.1, momentum=momentum)
    still = 0
    for number in range(120):
        weight.grad = constant + 0.1 * torch.randn(8, 8)
        if number == 5:
            weight.grad *= 1e8
        before = weight.detach().clone()
        optimizer.step()
        still += torch.equal(weight, before)
    assert least <= still == optimizer.skipped_steps() <= most
    assert defect(weight.detach()) < 1e-6


def test_a_refused_step_of_a_finite_gradient_leaves_the_next_step_as_it_would_be():
    """W - 1/2 has a singular value of 0; the averages and their count agree about that step."""
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    weight = projunn.UnitaryParameter(signs / 2)
    fresh = twin(weight)
    options = {"betas": (0.5, 0.0), "eps": 0.0, "rank": 4, "factorization": "svd", "retraction": "polar"}
    optimizers = [
        optim.AdamW([p], lr=0.5, unitary_lr=0.5, polish_every=0, **options) for p in (weight, fresh)
    ]
    first = torch.ones(4, 4)
    step(optimizers[0], weight, first)
    assert torch.equal(weight, signs / 2)
    assert optimizers[0].skipped_steps() == 1
    averaged = optimizers[0].state[weight]["exp_avg_sq"].any()
    if averaged:  # then those of the twin have it too
        optimizers[1].param_groups[0]["lr"] = 0.0
        step(optimizers[1], fresh, first)
        optimizers[1].param_groups[0]["lr"] = 0.5
    for _ in range(3):
        gradient = torch.randn(4, 4)
        step(optimizers[0], weight, gradient)
        step(optimizers[1], fresh, gradient)
        torch.testing.assert_close(weight, fresh, rtol=0, atol=2e-6)


def sparse_gradient(p, chosen):
    p.grad = None
    part = select_blocks(p, torch.tensor(chosen))
    (part * torch.randn_like(part)).abs().square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_matrices_that_are_not_selected_keep_every_bit(rule, dtype, factorization):
    weight = bank(6, dtype=dtype)
    optimizer = rule([weight], polish_every=1, factorization=factorization)
    for t in range(8):
        chosen = [[0, 4], [1, 4], [5], [2, 1]][t % 4]
        with torch.no_grad():
            weight.mul_(1 + 1e-5)
        before = weight.detach().clone()
        sparse_gradient(weight, chosen)
        optimizer.step()
        others = [i for i in range(6) if i not in chosen]
        assert torch.equal(weight[others], before[others])
        assert (weight[chosen] != before[chosen]).flatten(1).any(1).all()
    assert optimizer.state[weight]["missed"].tolist() == [6, 4, 6, 8, 4, 6]


def test_matrices_that_take_turns_are_all_polished():
    """Each by its own steps: one may never be selected in a step that is due by those of the bank."""
    weight = bank(4)
    optimizer = optim.SGD([weight], lr=1e-3, polish_every=2)
    with torch.no_grad():
        weight.mul_(1 + 1e-5)
    for t in range(16):
        sparse_gradient(weight, [[0, 1], [2, 3]][t % 2])
        optimizer.step()
    assert defect(weight.detach()) < 1e-6


def test_a_matrix_that_is_selected_late_takes_a_first_step():
    weight = bank(3)
    fresh = projunn.UnitaryParameter(weight.detach()[2:].clone())
    options = {"lr": 0.3, "polish_every": 0, "factorization": "svd", "rank": 4}
    optimizer, other = optim.AdamW([weight], **options), optim.AdamW([fresh], **options)
    for _ in range(5):
        sparse_gradient(weight, [0, 1])
        optimizer.step()
    for _ in range(2):
        gradient = torch.randn(1, 4, 4)
        weight.grad = torch.sparse_coo_tensor([[2]], gradient, weight.shape, check_invariants=True)
        optimizer.step()
        step(other, fresh, gradient)
        torch.testing.assert_close(weight[2], fresh[0], rtol=0, atol=2e-6)


def layouts(data):
    yield data.transpose(0, 1).contiguous().transpose(0, 1)
    yield data.mT.contiguous().mT
    yield data.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    yield torch.stack([data, data], -1)[..., 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("factorization", FACTORIZATIONS)
@pytest.mark.parametrize("size", [(4, 4), (5, 3)], ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_strided_bank_of_two_batch_axes_steps_as_a_contiguous_one(
    rule, dtype, factorization, size, sparse
):
    data = projunn.init.haar_(torch.empty(2, 3, *size, dtype=dtype))
    gradients = [torch.randn_like(data) for _ in range(3)]
    gradients[1][1, 2, 0, 0] = torch.nan
    at = torch.tensor([[0, 1, 1], [1, 0, 2]])
    results = []
    for laid_out in (data.clone(), *layouts(data)):
        weight = projunn.UnitaryParameter(laid_out)
        optimizer = rule([weight], factorization=factorization, polish_every=2, unitary_lr=3e-4)
        for gradient in gradients:
            weight.grad = gradient.clone()
            if sparse:
                weight.grad = torch.sparse_coo_tensor(
                    at, gradient[at[0], at[1]], data.shape, check_invariants=True
                )
            optimizer.step()
        results.append(weight.detach().contiguous())
    assert defect(results[0]) < 2e-6
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_traced_step_counts_as_the_eager_one(name):
    """With steps of one matrix that are skipped, and a polish after each."""
    torch._dynamo.reset()  # other tests of this process may have used up its recompilations
    eager = bank(3)
    traced = twin(eager)
    options = {"lr": 0.3, **RULES[name], "polish_every": 1}
    optimizers = [getattr(optim, name)([p], **options) for p in (eager, traced)]
    steps = optimizers[0].step, torch.compile(optimizers[1].step, fullgraph=True, backend="aot_eager")
    for t in range(5):
        gradient = torch.randn_like(eager)
        if t in (0, 1, 3):
            gradient[1, 0, 0] = torch.nan
        for p, take in zip((eager, traced), steps, strict=True):
            p.grad = gradient.clone()
            take()
        assert torch.equal(eager, traced)
    assert [o.skipped_steps() for o in optimizers] == [3, 3]


def test_a_run_with_skipped_steps_resumes_bit_for_bit(rule):
    weight = bank(3)
    optimizer = rule([weight], polish_every=2)
    gradients = [torch.randn_like(weight) for _ in range(8)]
    for t in (0, 2):
        gradients[t][1] = torch.nan
    for gradient in gradients[:3]:
        step(optimizer, weight, gradient)
    other = twin(weight)
    resumed = rule([other], polish_every=2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for gradient in gradients[3:]:
        step(optimizer, weight, gradient)
        step(resumed, other, gradient)
    assert torch.equal(weight, other)
