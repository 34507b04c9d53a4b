"""Steps that read their direction once: against their definition, and what invalidates W^H R."""

import threading
from weakref import ref

import pytest
import torch

import projunn
from projunn import UnitaryParameter, init
from projunn.optim import SGD
from projunn_kernels import FusedStep, fused_step_
from projunn_kernels.configs.problem import Device
from projunn_kernels.constants import PROBE
from projunn_kernels.single_pass.tiles import BOTH_PRODUCTS
from tests.dense import RETRACTIONS, defect, precise, unitary_factor

KINDS = (torch.float32, torch.complex64)
RATE = 0.3


def draw(kind, m, n, k=1, batch=(2,)):
    """The tensors of a step: W, D, [R, V], their probes and the counters."""
    weight = init.haar_(torch.empty(*batch, m, n, dtype=kind))
    direction = torch.randn(*batch, m, n, dtype=kind) / n**0.5
    basis = torch.cat([init.haar_(torch.empty(*batch, rows, k, dtype=kind)) for rows in (m, n)], -2)
    counters = torch.zeros(()), torch.zeros(batch, dtype=torch.int64)
    return [weight, direction, basis, basis.clone(), *counters]


def orthonormal(columns):
    return torch.linalg.qr(columns)[0]


def expected(weight, direction, basis, probe, retraction):
    """W of the step along R R^H D, by a dense function, and what the next R and V span."""
    w, d, basis, probe = map(precise, (weight, direction, basis, probe))
    r, v = basis.split(list(w.shape[-2:]), -2)
    if w.shape[-2] > w.shape[-1]:
        after = (w.mH @ unitary_factor(-RATE * w @ (r @ (r.mH @ d)).mH, retraction)).mH
    else:
        after = w @ unitary_factor(-RATE * w.mH @ r @ (r.mH @ d), retraction)
    return after, d @ v, d.mH @ r


def span(columns):
    q = orthonormal(precise(columns))
    return q @ q.mH


def take(tensors, **options):
    given = ([tensor] for tensor in tensors)
    return fused_step_(FusedStep(*given, RATE, factorization="single_pass", **options))


def check(tensors, retraction, step):
    weight, direction, basis, probe, skipped, _ = tensors
    m = weight.shape[-2]
    after, left, right = expected(weight, direction, basis, probe, retraction)
    step(tensors)
    assert (precise(weight) - after).abs().max() < 2e-6
    assert defect(weight) < 1e-6
    r, v = basis[..., :m, :], basis[..., m:, :]
    torch.testing.assert_close(span(r - PROBE * probe[..., :m, :]), span(left), atol=1e-4, rtol=0)
    torch.testing.assert_close(span(v - PROBE * probe[..., m:, :]), span(right), atol=1e-4, rtol=0)
    assert skipped.item() == 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("size", [(1, 3), (5, 5), (20, 33), (140, 150)], ids=str)
def test_the_kernels_take_the_step(kernels, kind, retraction, size):
    """Two steps: of the second W^H R is that which the first has left."""
    tensors = [t.to(kernels.device) for t in draw(kind, *size)]
    with kernels.backend():
        for _ in range(2):
            tensors[1].normal_().div_(size[1] ** 0.5)
            check(tensors, retraction, lambda given: take(given, retraction=retraction))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("size", [(3, 3), (6, 9), (9, 6)], ids=str)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_pytorch_takes_the_step(kind, retraction, k, size, batch):
    tensors = draw(kind, *size, k, batch)
    check(tensors, retraction, lambda given: take(given, retraction=retraction))


def test_float64_is_exact():
    """A hundred steps are those of the definition, to rounding, and none leaves the manifold."""
    tensors = draw(torch.float64, 12, 12, 2, ())
    weight, direction, basis, probe = tensors[:4]
    w, r, v = weight.clone(), *basis.clone().split(12, -2)
    for _ in range(100):
        direction.normal_()
        take(tensors)
        left = w.mT @ r @ (direction.mT @ r).mT
        next_v, r = orthonormal(direction.mT @ r), orthonormal(direction @ v) + PROBE * probe[:12]
        next_v += PROBE * probe[12:]
        w, v = w @ unitary_factor(-RATE * left, "exp"), next_v
        # an orthonormal basis is free to turn: that of the step is taken up
        torch.testing.assert_close(span(basis[:12] - PROBE * probe[:12]), span(r - PROBE * probe[:12]))
        r, v = basis.clone().split(12, -2)
        torch.testing.assert_close(weight, w, atol=1e-11, rtol=0)
    assert defect(weight) < 1e-12


def train(kernels, edit, steps=6, **options):
    """A weight and its twin on PyTorch's path; ``edit(weight, step)`` before each step."""
    start, source = init.haar_(torch.empty(40, 40)), torch.Generator().manual_seed(1)
    gradients = torch.randn(steps, 40, 40, generator=source) / 6
    found = []
    for backend, device in (
        (kernels.backend, kernels.device),
        (lambda: projunn.backend("torch"), "cpu"),
    ):
        weight = UnitaryParameter(start.clone().to(device))
        optimizer = SGD(
            [weight], lr=1.0, unitary_lr=0.3, factorization="single_pass", polish_every=0, **options
        )
        with backend():
            for number, gradient in enumerate(gradients):
                weight.grad = gradient.to(device)
                edit(weight, number)
                optimizer.step()
        found.append((weight.detach().cpu(), optimizer.skipped_steps()))
    return found


AVERAGES = pytest.mark.parametrize("momentum", [0, 0.9])


@AVERAGES
def test_an_edited_weight_is_read_anew(kernels, momentum):
    other = init.haar_(torch.empty(40, 40))

    def edit(weight, step):
        if step == 3:
            with torch.no_grad():
                weight.copy_(other)

    (weight, skipped), (wanted, _) = train(kernels, edit, momentum=momentum)
    torch.testing.assert_close(weight, wanted, atol=1e-6, rtol=0)
    assert skipped == 0


@AVERAGES
def test_an_edit_behind_pytorchs_back_costs_a_step(kernels, momentum):
    """It is counted, W stays what the edit made of it, and the next step is right again."""
    other, seen = init.haar_(torch.empty(40, 40)), []

    def edit(weight, step):
        if step == 3:
            weight.data.copy_(other)
        if step == 4:
            seen.append(weight.detach().cpu().clone())

    (weight, skipped), _ = train(kernels, edit, steps=6, momentum=momentum)
    assert skipped == 1
    assert torch.equal(seen[0], other)
    assert defect(weight) < 1e-6
    assert not torch.equal(weight, other)


def test_in_a_graph_the_kernels_look_first(kernels):
    """What is kept of W^H R is garbage at first, and is made anew."""
    from projunn_kernels.single_pass.launch import SinglePass

    tensors = [t.to(kernels.device) for t in draw(torch.float32, 40, 40)]
    step = FusedStep(*([t] for t in tensors), RATE, factorization="single_pass")
    with kernels.backend():
        run = SinglePass(step, mend=True)
        for number in range(3):
            if number == 2:
                tensors[0].copy_(init.haar_(torch.empty(2, 40, 40)))
            check(tensors, "exp", lambda _: run(step))


@pytest.mark.interpreter_only
@AVERAGES
def test_steps_that_a_graph_has_are_never_trusted_to_versions(kernels, launches, monkeypatch, momentum):
    """What the step before has left is used in the graph, and by eager steps after its replays.

    The graph is captured on another stream than that of the eager steps, as `torch.cuda.graph` does it.
    """
    from projunn_kernels import keeping
    from projunn_kernels.configs import choice
    from projunn_kernels.step import launch

    graph, now = {2, 3}, [0]
    monkeypatch.setattr(launch, "_in_graphs", {})
    for module in (keeping, launch):
        monkeypatch.setattr(module, "capturing", lambda device: now[0] in graph)
    monkeypatch.setattr(keeping, "current_stream", lambda device: int(now[0] in graph))
    monkeypatch.setattr(launch, "in_force", lambda tensor: (int(now[0] in graph), choice.generation()))
    other, names = init.haar_(torch.empty(40, 40)), {}

    def edit(weight, step):
        names.setdefault(step - 1, [name for name, _ in launches])
        launches.clear()
        now[0] = step
        if step == 5:  # as a replay does
            weight.data.copy_(other)

    (weight, skipped), (wanted, _) = train(kernels, edit, steps=7, momentum=momentum)
    torch.testing.assert_close(weight, wanted, atol=1e-6, rtol=0)
    assert skipped == 0
    step = ["both_products", "unit", "plane_basis", "rotate_ahead"]
    step = ["sound", *step] if momentum else step
    assert names[1] == step
    assert all(names[number] == ["ahead_is_sound", "rotate_ahead", *step] for number in range(2, 6))
    assert [kept is not None for kept in launch._in_graphs.values()] == [True]


@pytest.mark.interpreter_only
@pytest.mark.parametrize("warms_up", [True, False])
def test_memory_of_a_graph_is_not_trusted(kernels, monkeypatch, warms_up):
    """Between two replays other launches of the graph write there, in columns that no kernel looks at.

    While ``torch.compile`` warms up, memory can be had that is no graph's; a capture has none.
    """
    from projunn_kernels import keeping
    from projunn_kernels.step import launch

    monkeypatch.setattr(launch, "_in_graphs", {})
    for module in (keeping, launch):
        monkeypatch.setattr(module, "capturing", lambda device: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: not warms_up)
    made, makers, empty = [], [], torch.empty

    class Noted(launch.SinglePass):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    def noted(*arguments, **options):
        makers.append(threading.get_ident())
        return empty(*arguments, **options)

    monkeypatch.setattr(launch, "SinglePass", Noted)
    tensors = [t.to(kernels.device) for t in draw(torch.float32, 40, 40)]
    monkeypatch.setattr(torch, "empty", noted)
    with kernels.backend():
        take(tensors)
        (run,) = made
        assert run.lasts is warms_up
        assert any(maker != threading.get_ident() for maker in makers) is warms_up
        if warms_up:  # what is captured then finds it
            take(tensors)
            assert made[-1].ahead is run.ahead
            return
        step = FusedStep(*([t] for t in tensors), RATE, factorization="single_pass")
        run.ahead[..., 1:] = 0.3
        check(tensors, "exp", lambda _: run(step))


@pytest.mark.interpreter_only
def test_copies_do_not_outlive_their_step(kernels):
    """As a compiled step of complex parameters makes them; a basis at an old address is a new one."""
    tensors, alive = draw(torch.float32, 12, 12), []
    with kernels.backend():
        for _ in range(4):
            copies = [t.clone() for t in tensors]
            check(copies, "exp", take)
            alive.append(ref(copies[2]))
            del copies
    assert [one() for one in alive] == [None] * 4


def test_the_small_problem_is_split():
    """Or a GPU would not check the sums of more than one part."""
    row_splits = pytest.importorskip("projunn_kernels.products.launch").row_splits
    device = Device("H100", "9.0", 132, 232_448)
    for n, pairs in [(9, False), (1024, False), (4096, False), (1024, True), (4096, True)]:
        problem = BOTH_PRODUCTS.problem(1, n, n, 1, pairs)
        for config in BOTH_PRODUCTS.candidates(problem, device):
            assert row_splits(BOTH_PRODUCTS.small(problem, config), config, device)[0] > 1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_not_finite_is_left_alone_and_counted(kernels, kind):
    tensors = [t.to(kernels.device) for t in draw(kind, 12, 20, batch=(3,))]
    tensors[1][1, 2, 3] = torch.nan
    before = [t.clone() for t in tensors]
    with kernels.backend():
        mask = take(tensors)
    assert mask.tolist() == [True, False, True]
    assert tensors[4].item() == 1
    assert tensors[5].tolist() == [0, 1, 0]
    for number in (0, 2):
        assert torch.equal(tensors[number][1], before[number][1])
        assert not torch.equal(tensors[number][0], before[number][0])


@pytest.mark.parametrize("by", ["kernels", "pytorch"])
def test_a_direction_of_zero_changes_nothing(kernels, by):
    """Neither W nor what the next step starts from; and it counts as taken."""
    tensors = [t.to(kernels.device) for t in draw(torch.float32, 12, 12)]
    tensors[1][0].zero_()
    before = [t.clone() for t in tensors]
    with kernels.backend() if by == "kernels" else projunn.backend("torch"):
        assert take(tensors).all()
        for number in (0, 2):
            assert torch.equal(tensors[number][0], before[number][0])
            assert not torch.equal(tensors[number][1], before[number][1])
        tensors[1].normal_().div_(12**0.5)
        check(tensors, "exp", take)
    assert tensors[5].tolist() == [0, 0]


@pytest.mark.parametrize("seen", ["every other step", "a few columns"])
def test_steps_arrive_where_gradients_come_and_go(seen):
    """What of the last step's span is not in a gradient must not take the length of its step.

    Gradients of some matrices of a bank are zero in some steps, those of rare inputs have few columns.
    """
    source = torch.Generator().manual_seed(0)
    target, start = (init.haar_(torch.empty(12, 12), generator=source) for _ in range(2))
    if torch.det(target) * torch.det(start) < 0:
        target[0].neg_()
    weight = UnitaryParameter(start)
    optimizer = SGD([weight], lr=1.0, unitary_lr=0.3, factorization="single_pass")
    for step in range(400):
        shown = step % 2 if seen == "every other step" else torch.rand(12, generator=source) < 0.3
        weight.grad = (weight.detach() - target) * shown
        optimizer.step()
    assert torch.dist(weight.detach(), target) < 0.15 * torch.linalg.norm(target)


@pytest.mark.parametrize("size", [(5, 7), (7, 5)], ids=str)
def test_listed_matrices_step_as_they_do_alone(size):
    bank, _, basis, probe, *_ = draw(torch.float32, *size, 1, (4,))
    direction, listed = torch.randn(2, *size), torch.tensor([2, 0])
    wanted, new = bank.clone(), basis.clone()
    for d, i in zip(direction, listed.tolist(), strict=True):
        take([wanted[i], d, new[i], probe[i], torch.zeros(()), torch.zeros((), dtype=torch.int64)])
    take(
        [bank, direction, basis, probe, torch.zeros(()), torch.zeros(4, dtype=torch.int64)],
        active=listed,
    )
    torch.testing.assert_close(bank, wanted, atol=2e-6, rtol=0)
    torch.testing.assert_close(basis, new, atol=2e-6, rtol=0)
