"""Losses with a margin, against their formula in float64."""

import pytest
import torch
from torch import nn

from projunn.nn import OffsetCrossEntropyLoss


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2, 6), (0, 4)])
@pytest.mark.parametrize("annealing", [0.0, 0.5, 5.0])
def test_it_is_its_formula(shape, annealing):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = torch.randint(4, (shape[0], *shape[2:]))
    onehot = nn.functional.one_hot(target, 4).movedim(-1, 1)
    share = ((x - 0.7 * onehot) / 0.3).softmax(1)
    right = (share * onehot).sum(1)
    expected = -0.3 * (1 - right) ** annealing * right.log()
    losses = OffsetCrossEntropyLoss(0.7, 0.3, annealing, reduction="none")(x, target)
    torch.testing.assert_close(losses, expected)
    (ours,) = torch.autograd.grad(losses.sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(ours, wanted)
    total = OffsetCrossEntropyLoss(0.7, 0.3, annealing, reduction="sum")(x, target)
    torch.testing.assert_close(total, expected.sum())
    if shape[0]:
        mean = OffsetCrossEntropyLoss(0.7, 0.3, annealing)(x, target)
        torch.testing.assert_close(mean, expected.mean())


def test_without_offset_it_is_cross_entropy():
    x, target = torch.randn(6, 3), torch.randint(3, (6,))
    torch.testing.assert_close(OffsetCrossEntropyLoss(0, 1)(x, target), nn.CrossEntropyLoss()(x, target))


@pytest.mark.parametrize("annealing", [0.0, 0.5, 5.0])
def test_logits_that_are_far_apart_have_finite_gradients(annealing):
    x = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    loss = OffsetCrossEntropyLoss(annealing=annealing)(x, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(5e3, rel=1e-3)
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 0.0], [-0.5, 0.5]]))


def test_an_answer_with_the_margin_is_left_alone_and_one_without_it_is_not():
    x = torch.tensor([[2.0, 0.0], [1.0, 0.0]], requires_grad=True)  # the offset is sqrt(2)
    OffsetCrossEntropyLoss(temperature=0.05)(x, torch.tensor([0, 0])).backward()
    assert x.grad[0].abs().max() < 1e-5
    assert x.grad[1, 0] < -0.49


def test_it_compiles_to_one_graph():
    torch._dynamo.reset()
    loss = OffsetCrossEntropyLoss(annealing=2)
    x, target = torch.randn(6, 3), torch.randint(3, (6,))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, target), loss(x, target))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"offset": -1.0}, "offset: got -1.0"),
        ({"offset": "x"}, "offset: got 'x'"),
        ({"temperature": 0}, "temperature: got 0"),
        ({"temperature": float("inf")}, "temperature: got inf"),
        ({"annealing": float("nan")}, "annealing: got nan"),
        ({"reduction": "max"}, "reduction: got 'max', wanted one of mean, sum, none"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        OffsetCrossEntropyLoss(**options)


LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("input", "target", "kind", "words"),
    [
        ([[1.0, 2.0]], LABELS, TypeError, "input: got"),
        (torch.ones(2, 3, dtype=torch.int64), LABELS, TypeError, "input: got torch.int64"),
        (torch.ones(2, 3), [0, 1], TypeError, "target: got"),
        (torch.ones(2, 3), LABELS.float(), TypeError, "target: got torch.float32"),
        (torch.ones(3), LABELS, ValueError, r"target: got shape \(2,\) for input of shape \(3,\)"),
        (torch.ones(3, 3), LABELS, ValueError, r"target: got shape \(2,\) for input of shape \(3, 3\)"),
        (torch.ones(2, 3), LABELS + 2, ValueError, "target: wanted classes from 0 to 2"),
        (torch.ones(2, 3), LABELS - 1, ValueError, "target: wanted classes from 0 to 2"),
    ],
)
def test_wrong_inputs_are_named(input, target, kind, words):
    with pytest.raises(kind, match=words):
        OffsetCrossEntropyLoss()(input, target)
