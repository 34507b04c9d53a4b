"""The rules of optimizers as kernels: equal to float64, and to the optimizers' own formulas."""

import copy

import pytest
import torch

import projunn
from projunn import init, optim
from projunn_kernels import RuleNumbers, RuleStep, follow_rule_
from tests.launches import watched

KINDS = pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
RULES = {
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.8, "nesterov": True}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop with momentum": ("RMSprop", {"momentum": 0.7}),
    "rmsprop, centered": ("RMSprop", {"centered": True}),
    "rmsprop, both": ("RMSprop", {"centered": True, "momentum": 0.7}),
    "adamw": ("AdamW", {}),
    "amsgrad": ("AdamW", {"amsgrad": True, "betas": (0.5, 0.9)}),
    "lion": ("Lion", {}),
}
EVERY_RULE = pytest.mark.parametrize("rule", RULES)


def twins(rule, kernels, *shapes, kind=torch.float32, **options):
    """Two optimizers of equal parameters: for a rule that runs in kernels, and for PyTorch."""
    torch.manual_seed(3)
    weights = [init.haar_(torch.empty(*shape, dtype=kind)) for shape in shapes]
    name, more = RULES[rule]
    made = []
    for _ in range(2):  # on one device: probes are drawn there
        parameters = [projunn.UnitaryParameter(w.clone().to(kernels.device)) for w in weights]
        made.append(getattr(optim, name)(parameters, lr=0.1, **{"polish_every": 0, **more, **options}))
    return made


def parameters_of(optimizer):
    return optimizer.param_groups[0]["params"]


def step_both(kernels, ours, theirs, spoil=lambda step, gradients: None, steps=3):
    for step in range(steps):
        gradients = [torch.randn_like(p.detach()) for p in parameters_of(theirs)]
        spoil(step, gradients)
        for optimizer in (ours, theirs):
            for p, gradient in zip(parameters_of(optimizer), gradients, strict=True):
                p.grad = gradient.to(p.device)
        with watched(kernels) as seen:
            ours.step()
        assert seen.kernels[0] == "sound"
        assert seen.kernels[1] in ("rule", "rule_product")
        with projunn.backend("torch"):
            theirs.step()


def assert_same(ours, theirs):
    for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=2e-5, rtol=0)
        for name, value in theirs.state[q].items():
            if name not in ("basis", "probe"):
                mine = ours.state[p][name]
                torch.testing.assert_close(
                    mine, value, atol=2e-5, rtol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
                )


@EVERY_RULE
@KINDS
@pytest.mark.parametrize(("rank", "shape"), [(1, (2, 9, 140)), (3, (2, 9, 12))], ids=str)
def test_one_pass_follows_the_rule_and_makes_the_product(kernels, rule, kind, rank, shape):
    """Also of a matrix whose gradient is not finite: its averages stay, and it is counted once."""
    ours, theirs = twins(rule, kernels, shape, shape, kind=kind, rank=rank)
    gradients = [torch.randn_like(p.detach()) for p in parameters_of(theirs)]
    gradients[1][1, -1, -1] = torch.nan
    for optimizer in (ours, theirs):
        for p, gradient in zip(parameters_of(optimizer), gradients, strict=True):
            p.grad = gradient.to(p.device)
    with watched(kernels) as seen:
        ours.step()
    begin = seen.kernels.index("sound")  # after the first bases
    after = "unit_product" if rank == 1 else "orthonormal"
    assert seen.kernels[begin : begin + 3] == ["sound", "rule_product", after]
    with projunn.backend("torch"):
        theirs.step()
    assert_same(ours, theirs)
    assert ours.skipped_steps() == theirs.skipped_steps() == 1
    assert [ours.state[p]["missed"].tolist() for p in parameters_of(ours)] == [[0, 0], [0, 1]]


@KINDS
@pytest.mark.parametrize("rule", ["rmsprop", "adamw", "amsgrad"])
@pytest.mark.parametrize(
    ("rank", "factorization", "shape"),
    [(2, "subspace", (9, 12)), (1, "subspace", (20, 130)), (1, "single_pass", (9, 12))],
    ids=str,
)
def test_no_eps(kernels, rule, kind, rank, factorization, shape):
    """Tiles reach beyond the matrix, where the averages are 0."""
    options = {"rank": rank, "factorization": factorization, "eps": 0.0}
    ours, theirs = twins(rule, kernels, shape, kind=kind, **options)
    for optimizer in (ours, theirs):
        (p,) = parameters_of(optimizer)
        p.grad = torch.ones_like(p).cumsum(-1)
    with kernels.backend():
        ours.step()
    with projunn.backend("torch"):
        theirs.step()
    assert_same(ours, theirs)
    assert ours.skipped_steps() == 0


@pytest.mark.parametrize("options", [{}, {"factorization": "single_pass"}], ids=str)
def test_launches_that_are_not_kept_fill_nothing(kernels, monkeypatch, options):
    """As in a graph, which would fill it again in each replay."""
    ours, _ = twins("adamw", kernels, (5, 140), (5, 140), **options)
    monkeypatch.setattr("projunn_kernels.step.launch.may_keep", lambda tensor: False)
    monkeypatch.setattr("projunn_kernels.step.launch.capturing", lambda device: True)
    for p in parameters_of(ours):
        p.grad = torch.randn_like(p)
    with watched(kernels) as seen:
        ours.step()
        seen.clear()
        ours.step()
    assert "both_products" in seen.kernels or "rule_product" in seen.kernels
    assert not [name for name in seen.calls if "zero" in name or "fill" in name]


@EVERY_RULE
@KINDS
def test_a_step_is_that_of_pytorch(kernels, rule, kind):
    ours, theirs = twins(rule, kernels, (2, 9, 9), (2, 9, 9), (3, 400), kind=kind)
    step_both(kernels, ours, theirs)
    assert_same(ours, theirs)


@EVERY_RULE
@KINDS
def test_a_matrix_whose_gradient_is_not_finite_stays_as_it_was(kernels, rule, kind):
    """Its averages and its share of the bias correction too; the others go on."""
    ours, theirs = twins(rule, kernels, (3, 9, 9), (3, 9, 9), kind=kind)
    before = copy.deepcopy(parameters_of(theirs)[1].detach()[2])

    def spoil(step, gradients):
        gradients[1][2, 8, 8] = torch.nan if step % 2 else -torch.inf
        if step == 1:
            gradients[0][0, 0, 0] = 3e38

    step_both(kernels, ours, theirs, spoil)
    assert_same(ours, theirs)
    assert torch.equal(parameters_of(ours)[1].detach()[2], before)
    missed = [ours.state[p]["missed"].tolist() for p in parameters_of(ours)]
    skipped = 0 if rule in ("momentum", "nesterov", "lion") else 1  # others square the 3e38
    assert missed[1] == [0, 0, 3]
    assert missed[0][1:] == [0, 0]
    assert missed[0][0] in (skipped, 1)
    assert ours.skipped_steps() == theirs.skipped_steps()


@pytest.mark.parametrize("counted", [False, True])
@KINDS
@pytest.mark.parametrize("steps", [1, 2, 1000, 2**24 + 1, 2**40])
def test_bias_correction_at_any_number_of_steps(kernels, kind, counted, steps):
    gradient = torch.randn(2, 5, 7, dtype=kind)
    mean, square = torch.randn(2, 5, 7, dtype=kind), torch.rand(2, 5, 7)
    numbers = RuleNumbers(1e18, 0.9, 1 - 0.9, 0.999, 1 - 0.999, 1e-8).in_order()

    def follow(device, precise):
        wide = {torch.float32: torch.float64, torch.complex64: torch.complex128} if precise else {}
        tensors = [t.to(device, wide.get(t.dtype, t.dtype), copy=True) for t in (gradient, mean, square)]
        missed = torch.tensor([0, steps // 2], device=device)
        return follow_rule_(
            RuleStep(
                gradients=[tensors[0]],
                means=[tensors[1]],
                squares=[tensors[2]],
                others=[],
                missed=[missed],
                numbers=numbers,
                rule="adamw",
                nesterov=False,
                steps=0 if counted else steps,
                counted=[torch.tensor(steps, device=device)] if counted else [],
            )
        )

    exact = follow("cpu", True)
    with kernels.backend():
        ours = follow(kernels.device, False).cpu()
    torch.testing.assert_close(ours.to(exact.dtype), exact, atol=0, rtol=2e-5)


def test_averages_that_do_not_lie_flat(kernels):
    ours, theirs = twins("amsgrad", kernels, (12, 20), (12, 20))
    step_both(kernels, ours, theirs, steps=1)
    for p in parameters_of(ours):
        state = ours.state[p]
        state["exp_avg"] = state["exp_avg"].mT.contiguous().mT
    step_both(kernels, ours, theirs, steps=2)
    assert_same(ours, theirs)


def test_a_changed_option_is_followed(kernels):
    ours, theirs = twins("adamw", kernels, (12, 20), (12, 20))
    step_both(kernels, ours, theirs, steps=1)
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["betas"] = (0.3, 0.6)
    step_both(kernels, ours, theirs, steps=2)
    assert_same(ours, theirs)


def test_parameters_of_other_counts_are_followed_by_pytorch(kernels):
    ours, theirs = twins("adamw", kernels, (9, 9), (9, 9))
    for optimizer in (ours, theirs):
        with kernels.backend() if optimizer is ours else projunn.backend("torch"):
            for some in (slice(0, 1), slice(0, 2), slice(0, 2)):
                optimizer.zero_grad()
                for p in parameters_of(optimizer)[some]:
                    p.grad = torch.ones_like(p.detach()) + torch.eye(9, device=p.device)
                optimizer.step()
    assert [int(ours.state[p]["step"]) for p in parameters_of(ours)] == [3, 2]
    assert_same(ours, theirs)


def layouts(name):
    """A weight and the options that say how its matrices are stored."""
    if name == "pairs":
        return torch.view_as_real(init.haar_(torch.empty(2, 6, 8, dtype=torch.complex64))), {
            "pairs": True
        }
    if name == "blocks":
        return init.haar_(torch.empty(3, 6, 6)).flatten(0, 1), {"blocks": 3}
    return init.haar_(torch.empty(6, 8))[..., None, None], {"singletons": 2}


@EVERY_RULE
@pytest.mark.parametrize("layout", ["pairs", "blocks", "singletons"])
def test_however_matrices_are_stored(kernels, rule, layout):
    torch.manual_seed(5)
    weight, stored = layouts(layout)
    name, more = RULES[rule]
    made = []
    for _ in range(2):
        p = projunn.UnitaryParameter(weight.clone().to(kernels.device), **stored)
        made.append(getattr(optim, name)([p], lr=0.1, polish_every=0, **more))
    step_both(kernels, *made)
    assert_same(*made)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_step_that_is_looked_at_takes_the_same_launches(kernels, rank):
    """So that it has the bits of a compiled or captured one, which nobody looks at."""
    ours, _ = twins("momentum", kernels, (9, 140), rank=rank)
    (p,) = parameters_of(ours)
    for number in range(64):
        p.grad = torch.randn_like(p)
        with watched(kernels, run=number > 61) as seen:
            ours.step()
        assert "rule_product" in seen.kernels
        assert "rule" not in seen.kernels
