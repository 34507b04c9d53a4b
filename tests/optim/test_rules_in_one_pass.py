"""Rules whose averages move in the first pass of a step of ``factorization="single_pass"``.

The launches `sound`, `rule` and that of the products of the direction become `sound` and one pass.  The
arithmetic is the same, so that the numbers are those of the launches apart.
"""

import copy
import gc
from weakref import ref

import pytest
import torch

pytest.importorskip("triton")

import projunn
from projunn import UnitaryParameter, init, optim
from projunn.optim import stopping
from projunn.optim.parts import Alike
from projunn_kernels import FollowedStep, followed_step_
from tests.combinations import pairwise
from tests.kernels.test_rules import RULES, assert_same, parameters_of, twins
from tests.launches import watched

KINDS = [torch.float32, torch.complex64]
STEP = ["both_products", "unit", "plane_basis", "rotate_ahead"]
IN_ONE_PASS, APART = ["sound", *STEP], ["sound", "rule", *STEP]
SINGLE = {"factorization": "single_pass"}


@pytest.fixture
def steps(kernels, launches, monkeypatch):
    """Steps of both on the same gradients, those of the second with launches apart for the rule.

    Returns the launches of each step of both.
    """

    def take(ours, theirs, count=3, spoil=lambda step, gradients: None):
        asked = []
        for step in range(count):
            gradients = [torch.randn_like(p.detach()) for p in parameters_of(ours)]
            spoil(step, gradients)
            for optimizer in (ours, theirs):
                for p, gradient in zip(parameters_of(optimizer), gradients, strict=True):
                    p.grad = gradient.clone()
                launches.clear()
                with monkeypatch.context() as patch, kernels.backend():
                    if optimizer is theirs:
                        patch.setattr(Alike, "_takes_gradients", lambda part: False)
                    optimizer.step()
                asked.append([name for name, _ in launches])
        return asked[::2], asked[1::2]

    return take


def assert_equal(ours, theirs):
    """Weights and state bit for bit in the interpreter, where a product is added to a sum apart."""
    for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        found, wanted = ours.state[p], theirs.state[q]
        assert found.keys() == wanted.keys()
        for a, b in [(p.detach(), q.detach()), *((found[name], wanted[name]) for name in wanted)]:
            close = {"rtol": 0, "atol": 0} if a.device.type == "cpu" else {"rtol": 1e-5, "atol": 1e-5}
            torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize(
    ("rule", "shapes", "kind"),
    pairwise(RULES, [((33, 40),), ((2, 9, 12),) * 3], KINDS),
    ids=str,
)
def test_the_numbers_are_those_of_launches_apart(kernels, steps, rule, shapes, kind):
    """Also of matrices that miss a step: their averages stay, and all are counted alike."""
    ours, theirs = twins(rule, kernels, *shapes, kind=kind, **SINGLE)

    def spoil(step, gradients):
        if step == 1 and len(shapes) > 1:
            gradients[1][1, 3, 4] = torch.nan
            gradients[2][0, 0, 0] = -torch.inf

    fused, separate = steps(ours, theirs, 3, spoil)
    assert fused[1:] == [IN_ONE_PASS] * 2
    assert separate[1:] == [APART] * 2
    assert_equal(ours, theirs)
    bad = 2 if len(shapes) > 1 else 0
    assert ours.skipped_steps() == theirs.skipped_steps() == bad
    assert sum(int(ours.state[p]["missed"].sum()) for p in parameters_of(ours)) == bad


@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_that_of_pytorch(kernels, rule):
    ours, theirs = twins(rule, kernels, (2, 9, 12), kind=torch.complex64, **SINGLE)
    for _ in range(3):
        for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
            p.grad, q.grad = (torch.randn_like(p.detach()),) * 2
        with kernels.backend():
            ours.step()
        with projunn.backend("torch"):
            theirs.step()
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((9, 12), {"rank": 2}), ((12, 9), {}), ((9, 9), {"averages": "tangent"})],
    ids=["rank 2", "tall", "averages of the tangent part"],
)
def test_what_cannot_go_in_one_pass_goes_apart(kernels, shape, options):
    ours, theirs = twins("adamw", kernels, shape, **SINGLE, **options)
    for _ in range(2):
        for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
            p.grad, q.grad = (torch.randn_like(p.detach()),) * 2
        with watched(kernels) as seen:
            ours.step()
        assert "rule" in seen.kernels
        with projunn.backend("torch"):
            theirs.step()
    if options.get("rank", 1) == 1:  # bases of more columns may be turned
        assert_same(ours, theirs)


def test_averages_that_do_not_lie_flat(kernels, steps):
    ours, theirs = twins("amsgrad", kernels, (12, 20), (12, 20), **SINGLE)
    steps(ours, theirs, 1)
    for optimizer in (ours, theirs):
        for p in parameters_of(optimizer):
            state = optimizer.state[p]
            state["exp_avg"] = state["exp_avg"].mT.contiguous().mT
    fused, _ = steps(ours, theirs, 2)
    assert all(names[:2] == ["sound", "rule"] for names in fused)
    assert_equal(ours, theirs)


def test_a_look_whether_steps_have_stopped_wants_the_direction(kernels, steps, monkeypatch):
    """In such a step, one of 64, the rule has its own launches, and W^H R is made anew after it."""
    monkeypatch.setattr(stopping, "_EVERY", 3)
    ours, theirs = twins("adamw", kernels, (12, 20), **SINGLE)
    fused, _ = steps(ours, theirs, 5)
    assert fused[1] == IN_ONE_PASS
    assert fused[2][: len(APART) + 2] == ["sound", "rule", "ahead_is_sound", "rotate_ahead", *STEP]
    assert fused[3] == ["rotate_ahead", *IN_ONE_PASS]
    assert fused[4] == IN_ONE_PASS
    assert_equal(ours, theirs)


def test_options_may_change(kernels, steps):
    """The constants of the rule, and the rate as a tensor."""
    ours, theirs = twins("adamw", kernels, (12, 20), **SINGLE)
    steps(ours, theirs, 1)
    for optimizer in (ours, theirs):
        group = optimizer.param_groups[0]
        group["betas"], group["maximize"] = (0.3, 0.6), True
        group["unitary_lr"] = torch.tensor(0.02, device=kernels.device)
    fused, _ = steps(ours, theirs, 2)
    assert all("rule" not in names for names in fused)
    assert_equal(ours, theirs)


@pytest.mark.parametrize("complex_as", ["numbers", "pairs"])
def test_complex_weights_as_pairs(kernels, steps, complex_as):
    torch.manual_seed(1)
    start, made = init.haar_(torch.empty(2, 9, 12, dtype=torch.complex64)), []
    for _ in range(2):
        stored = torch.view_as_real(start).clone() if complex_as == "pairs" else start.clone()
        p = UnitaryParameter(stored.to(kernels.device), pairs=complex_as == "pairs")
        made.append(optim.AdamW([p], lr=0.1, polish_every=0, **SINGLE))
    fused, _ = steps(*made)
    assert fused[1:] == [IN_ONE_PASS] * 2
    assert_equal(*made)


@pytest.mark.interpreter_only
def test_kept_launches_hold_no_state(kernels):
    (ours, _) = twins("adamw", kernels, (6, 8), **SINGLE)
    (p,) = parameters_of(ours)
    p.grad = torch.randn_like(p.detach())
    with kernels.backend():
        ours.step()
    held = [ref(value) for value in ours.state[p].values()]
    del ours, p, _
    gc.collect()
    assert [one() for one in held] == [None] * len(held)


@pytest.mark.interpreter_only
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_compiled_step(kernels, kind):
    """Steps of complex parameters are those of copies, whose W^H R has to be made anew."""
    ours, theirs = twins("adamw", kernels, (12, 20), kind=kind, **SINGLE)
    step = torch.compile(ours.step, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
            p.grad, q.grad = (torch.randn_like(p.detach()),) * 2
        with kernels.backend():
            step()
            theirs.step()
    assert_equal(ours, theirs)


def draw(m, n, kind=torch.float32):
    """The tensors of a step of AdamW, in the order of the operator's arguments."""
    weight = init.haar_(torch.empty(m, n, dtype=kind))
    columns = torch.randn(m + n, 1, dtype=kind) / n**0.5
    averages = [torch.randn(m, n, dtype=kind)], [torch.rand(m, n) + 1], []
    counters = [torch.zeros(())], [torch.zeros((), dtype=torch.int64)]
    first = [weight], [torch.randn(m, n, dtype=kind)], [columns], [columns.clone()]
    return [*first, *averages, *counters, [1e9, 0.9, 0.1, 0.99, 0.01, 1e-8, 0.0], "adamw", False, 3, []]


@pytest.mark.parametrize("size", [(4, 6), (6, 4)], ids=str)
def test_the_operator_passes_opcheck(kernels, size):
    options = {"factorization": "single_pass"}
    with kernels.backend():
        torch.library.opcheck(torch.ops.projunn.followed_step_.default, (*draw(*size), 0.1), options)


@pytest.mark.parametrize("factorization", ["subspace", "tangent", "single_pass"])
@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_the_rule_and_the_step_of_any_factorization(kernels, factorization, kind, shown):
    """And others see the directions, if they want."""
    n = 140 if factorization == "subspace" else 6
    given = draw(6, n, kind)
    rows = 12 if factorization == "single_pass" else 6
    for lists in given[2:4]:
        lists[0] = lists[0][:rows].contiguous()
    found = []
    for backend in (kernels.name, "torch"):
        own = copy.deepcopy(given)
        seen = torch.zeros(1, 6, n, dtype=kind) if shown else None
        step = FollowedStep(*own, 0.1, factorization=factorization, directions=seen)
        with projunn.backend(backend):
            taken = followed_step_(step)
        assert taken.all()
        found.append([*own[0], *own[2], *own[4], *own[5]])
        if seen is not None:
            assert seen.abs().sum() > 0
            found[-1].append(seen)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-5)
