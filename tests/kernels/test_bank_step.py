"""Steps of small matrices on a CPU, against float64 and against the operations they are made of."""

import numpy
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import projunn
from projunn import factorize, init, retract
from projunn_kernels import FusedStep, arrays, fused_step_
from projunn_kernels.step import bank, few, plane
from tests.dense import RETRACTIONS, defect, precise

RATE = 0.05


@pytest.fixture(autouse=True)
def _torch():
    with projunn.backend("torch"):
        yield


def draw(*shape, k=1, dtype=torch.float32):
    """Weights, directions, bases and probes (*shape), and the two counters."""
    weight, direction = init.haar_(torch.empty(shape, dtype=dtype)), torch.randn(shape, dtype=dtype)
    basis, probe = torch.randn(2, *shape[:-1], k, dtype=dtype)
    return [weight, direction, basis, probe, torch.zeros(()), torch.zeros(shape[:-2], dtype=torch.int64)]


def take(tensors, **options):
    return fused_step_(FusedStep(*([t] for t in tensors), **{"rate": RATE, **options}))


def clones(tensors):
    return [t.clone() for t in tensors]


def recorded(monkeypatch, module):
    """The masks that a module's ``bank_step`` returns."""
    masks, usual = [], module.bank_step

    def bank_step(*arguments):
        mask = usual(*arguments)
        masks.append(mask.clone())
        return mask

    monkeypatch.setattr(module, "bank_step", bank_step)
    return masks


def without_numpy(monkeypatch):
    monkeypatch.setattr(arrays, "available", lambda *_: False)


@pytest.fixture(params=["NumPy", "PyTorch"])
def taken(request, monkeypatch):
    """The masks of `plane.bank_step`, of real steps of rank one, by either library."""
    if request.param == "PyTorch":
        without_numpy(monkeypatch)
    return recorded(monkeypatch, plane)


@pytest.fixture
def by_bank(monkeypatch):
    """The masks of `bank.bank_step`, of all others."""
    without_numpy(monkeypatch)
    return recorded(monkeypatch, bank)


@pytest.fixture
def by_few(monkeypatch):
    """What `few.take` returns, which has small ones of them by NumPy."""
    answers, usual = [], few.take

    def take(*arguments):
        answers.append(usual(*arguments))
        return answers[-1]

    monkeypatch.setattr(few, "take", take)
    return answers


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize(
    "shape", [(4, 2, 2), (20, 9, 9), (3, 5, 12), (2, 3, 7, 7), (1, 64, 64)], ids=str
)
def test_a_step_equals_float64(taken, shape, retraction):
    tensors = draw(*shape)
    weight, direction, basis, probe, skipped, missed = tensors
    left, right = factorize(precise(direction), 1, "subspace", basis=precise(basis))
    wanted = retract(precise(weight), -RATE * left, right, retraction)
    warm = left / torch.linalg.vector_norm(left, dim=-2, keepdim=True) + 0.01 * precise(probe)
    mask = take(tensors, retraction=retraction)
    assert [bool(one.all()) for one in taken] == [True]
    assert mask.shape == shape[:-2]
    assert mask.all()
    assert (precise(weight) - wanted).abs().max() < 1e-6
    assert (precise(basis) - warm).abs().max() < 1e-6
    assert defect(weight) < 1e-6
    assert skipped.item() == missed.sum().item() == 0


REAL, COMPLEX = torch.float32, torch.complex64
OTHERS = [
    ((6, 6), 2, REAL),
    ((64, 64), 16, REAL),
    ((9, 5), 1, COMPLEX),
    ((4, 3, 3), 3, REAL),
    ((20, 9, 9), 4, REAL),
    ((3, 5, 12), 2, COMPLEX),
    ((3, 12, 5), 1, REAL),
    ((3, 12, 5), 4, COMPLEX),
    ((2, 3, 7, 7), 1, COMPLEX),
    ((2, 3, 7, 7), 2, REAL),
    ((2, 1, 1), 1, COMPLEX),
]


@pytest.mark.parametrize("rate", [1e-4, RATE, 1.0])
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize(("shape", "k", "dtype"), OTHERS, ids=str)
@pytest.mark.parametrize("way", ["by_bank", "by_few"])
def test_a_step_of_any_rank_equals_float64(request, way, shape, k, dtype, retraction, rate):
    if way == "by_few" and k > 1 and torch.Size(shape[:-2]).numel() > 4:
        pytest.skip("decompositions of many matrices are PyTorch's")
    seen = request.getfixturevalue(way)
    tensors = draw(*shape, k=k, dtype=dtype)
    weight, direction, basis, probe, skipped, missed = tensors
    left, right = factorize(precise(direction), k, "subspace", basis=precise(basis))
    wanted = retract(precise(weight), -rate * left, right, retraction)
    mask = take(tensors, retraction=retraction, rate=rate)
    assert [bool(torch.as_tensor(one).all()) for one in seen] == [True]
    assert mask.shape == shape[:-2]
    assert mask.all()
    assert (precise(weight) - wanted).abs().max() < 4e-6
    assert defect(weight) < 1e-6
    warm = precise(basis) - 0.01 * precise(probe)
    assert defect(warm.mH) < 1e-5  # W W^H = I for matrices with more columns than rows
    assert (left - warm @ (warm.mH @ left)).abs().max() < 1e-5 * left.abs().max()
    assert skipped.item() == missed.sum().item() == 0


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_steps_of_any_rank_that_want_more_care_are_as_alone(by_bank, retraction, dtype):
    tensors = draw(9, 6, 6, k=2, dtype=dtype)
    weight, direction, basis, _, skipped, missed = tensors
    direction[0] = 0
    direction[1, 2, 3] = torch.nan
    direction[2] = torch.outer(direction[2, 0], direction[2, 1])  # of rank one
    direction[3] *= 1e9
    direction[4, 1, 1] = torch.inf
    direction[5] *= 1e-33
    basis[6, :, 1] = basis[6, :, 0]
    before = clones(tensors)
    alone = [
        [t[i].clone() for t in tensors[:4]] + [torch.zeros(()), missed[i].clone()] for i in range(9)
    ]
    masks = [bool(take(one, retraction=retraction)) for one in alone]
    by_bank.clear()
    assert take(tensors, retraction=retraction).tolist() == masks
    assert not masks[1]
    assert not masks[4]
    assert not any(by_bank[0][:3])
    assert skipped.item() == masks.count(False)
    assert missed.tolist() == [int(not mask) for mask in masks]
    for i, one in enumerate(alone):
        torch.testing.assert_close(weight[i], one[0], atol=2e-6, rtol=0)
    for i in (1, 4):
        assert torch.equal(weight[i], before[0][i])
        assert torch.equal(basis[i], before[2][i])


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_few_that_want_more_care_are_left_to_the_others(by_few, retraction, dtype):
    usual = draw(3, 6, 6, k=2, dtype=dtype)
    for change in (
        lambda direction, basis: direction[0].zero_(),
        lambda direction, basis: direction[0].fill_(torch.nan),
        lambda direction, basis: direction[0].copy_(direction[0].real.new_ones(6, 6)),  # of rank one
        lambda direction, basis: direction[0].mul_(1e9),
        lambda direction, basis: direction[0].mul_(1e-33),
        lambda direction, basis: basis[0, :, 1].copy_(basis[0, :, 0]),
    ):
        tensors = clones(usual)
        tensors[1][0] = torch.randn(6, 6, dtype=dtype)
        change(*tensors[1:3])
        twins = clones(tensors)
        masks = take(tensors, retraction=retraction)
        with pytest.MonkeyPatch.context() as patch:
            without_numpy(patch)
            assert torch.equal(take(twins, retraction=retraction), masks)
        for mine, theirs in zip(tensors, twins, strict=True):
            torch.testing.assert_close(mine, theirs, atol=0, rtol=0, equal_nan=True)
    assert by_few == [False] * 6


def test_what_takes_longer_by_numpy_goes_its_usual_way(by_few):
    for tensors in (draw(64, 64, k=32), draw(4, 64, 64, k=8)):
        take(tensors)
        assert tensors[0].isfinite().all()
    assert not by_few


def test_a_lazily_conjugated_weight_steps_as_its_copy_does():
    tensors = draw(6, 6, dtype=COMPLEX)
    memory, twins = tensors[0].conj().resolve_conj(), clones(tensors)
    twins[0] = memory.conj()
    take(tensors)
    take(twins)
    torch.testing.assert_close(memory, tensors[0].conj(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "dtype"), [((6, 6), REAL), ((3, 6, 6), COMPLEX)], ids=str)
def test_make_fx_traces_the_operator(shape, dtype):
    """Also with tensors that hold numbers; NumPy's changes of those would be lost in the graph."""

    def moved(weight, direction, *others):
        tensors = [weight.clone(), direction, *(t.clone() for t in others)]
        take(tensors)
        return tensors[0]

    graph, other = make_fx(moved)(*draw(*shape, dtype=dtype)), draw(*shape, dtype=dtype)
    assert torch.equal(graph(*other), moved(*other))


def test_few_whose_decomposition_fails_are_left_to_the_others(by_few, monkeypatch):
    tensors = draw(3, 6, 6, k=2)
    before = tensors[0].clone()

    def fails(*_):
        raise numpy.linalg.LinAlgError

    monkeypatch.setattr(few, "_rotation", fails)
    assert take(tensors).all()
    assert by_few == [False]
    assert (tensors[0] - before).abs().max() > 1e-3


def test_a_step_by_numpy_is_noticed_by_autograd(taken):
    weight, *others = draw(8, 8)
    weight.requires_grad_()
    loss = (weight * weight).sum()
    with torch.no_grad():
        take([weight, *others])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_rate_in_a_tensor_is_that_in_a_number(taken):
    tensors = draw(5, 8, 8)
    twins = clones(tensors)
    take(tensors)
    take(twins, rate=0.5, scale=torch.tensor(0.1))
    torch.testing.assert_close(tensors[0], twins[0], atol=1e-7, rtol=0)
    assert len(taken) == 2


@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_matrices_that_want_more_care_step_as_they_do_alone(taken, retraction):
    tensors = draw(8, 6, 6)
    twins = clones(tensors)
    weight, direction, _, _, skipped, missed = tensors
    direction[0] = 0
    direction[1, 2, 3] = torch.nan
    weight[2] = torch.eye(6)
    direction[2] = 0
    direction[2, 3, 3] = 1  # z is y: the step turns nothing
    direction[3] = 0
    direction[3, 2, 4] = 1
    direction[4, 1, 1] = torch.inf
    direction[5] *= 1e-30
    before = clones(tensors)
    alone = [
        [t[i].clone() for t in tensors[:4]] + [torch.zeros(()), missed[i].clone()] for i in range(8)
    ]
    masks = [bool(take(one, retraction=retraction)) for one in alone]
    assert take(tensors, retraction=retraction).tolist() == masks
    assert masks == [True, False, True, True, False, True, True, True]
    assert taken[-1].tolist() == [False, False, False, True, False, True, True, True]
    assert skipped.item() == 2
    assert missed.tolist() == [0, 1, 0, 0, 1, 0, 0, 0]
    for i, one in enumerate(alone):
        torch.testing.assert_close(weight[i], one[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(tensors[2][i], one[2], atol=1e-6, rtol=0)
    for i in (1, 4):
        assert torch.equal(weight[i], before[0][i])
        assert torch.equal(tensors[2][i], before[2][i])
    # The others step to the bit as they do beside matrices of the usual kind.
    take(twins, retraction=retraction)
    for mine, theirs in zip(tensors[:3:2], twins[:3:2], strict=True):
        assert torch.equal(mine[6:], theirs[6:])


@pytest.mark.parametrize(("k", "dtype"), [(1, REAL), (1, COMPLEX), (4, REAL)], ids=str)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_many_full_size_steps_drift_as_little_as_by_the_parts(monkeypatch, retraction, k, dtype):
    defects = []
    for by_parts in (False, True):
        if by_parts:
            monkeypatch.setattr(few, "applies", lambda *_: False)
            for module in (plane, bank):
                monkeypatch.setattr(module, "applies_to_bank", lambda *_: False)
        torch.manual_seed(0)
        weight, _, basis, probe, *counters = draw(10, 12, 12, k=k, dtype=dtype)
        for _ in range(200):
            direction = torch.randn(10, 12, 12, dtype=dtype)
            take([weight, direction, basis, probe, *counters], rate=1, retraction=retraction)
        assert not counters[0]
        defects.append(defect(weight))
    assert defects[0] < 1.5 * defects[1] < 1e-5


def test_what_it_does_not_take_goes_its_usual_way(taken):
    for tensors in (
        draw(100, 100),
        draw(3, 8, 5),
        draw(2, 1, 1),
        draw(0, 4, 4),
        [t.double() for t in draw(2, 4, 4)],
    ):
        take(tensors)
        assert not taken
    strided = draw(3, 4, 4)
    strided[0] = strided[0].mT.contiguous().mT
    usual = clones(strided)
    take(strided)
    assert not taken
    usual[0] = usual[0].contiguous()
    take(usual)
    torch.testing.assert_close(strided[0], usual[0], atol=1e-6, rtol=0)
