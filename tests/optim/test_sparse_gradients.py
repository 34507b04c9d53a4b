"""Banks of which a few matrices have a gradient."""

import pytest
import torch
from torch import nn

import projunn
from projunn import optim
from projunn.nn import BlockUnitaryLinear, select_blocks
from tests.dense import defect

RULES = [
    (optim.SGD, {}),
    (optim.SGD, {"momentum": 0.9}),
    (optim.RMSprop, {"centered": True, "momentum": 0.5}),
    (optim.AdamW, {"amsgrad": True}),
]


def bank(kind, count=6, n=5):
    empty = torch.empty(count, n, n, dtype=kind)
    if not kind.is_complex:
        return projunn.UnitaryParameter(projunn.init.haar_(empty))
    return projunn.UnitaryParameter(torch.view_as_real(projunn.init.haar_(empty)), pairs=True)


@pytest.mark.parametrize(("rule", "options"), RULES)
@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("factorization", ["subspace", "lsi", "single_pass", "svd"])
def test_a_sparse_gradient_is_the_dense_one_of_its_matrices(rule, options, kind, factorization):
    sparse = bank(kind)
    chosen = torch.tensor([4, 1])
    start = sparse.detach().clone()
    few = projunn.UnitaryParameter(start[[1, 4]].clone(), pairs=sparse.pairs)
    options = {"lr": 0.5, "factorization": factorization, **options}
    optimizers = [rule([p], **options) for p in (sparse, few)]
    torch.manual_seed(0)
    target = torch.randn(2, 5, 5, dtype=kind)
    for _ in range(3):
        for p in (sparse, few):
            p.grad = None
        (select_blocks(sparse, chosen).flip(0) - target).abs().square().sum().backward()
        (projunn.matrix_view(few) - target).abs().square().sum().backward()
        assert sparse.grad.is_sparse
        for optimizer in optimizers:
            optimizer.step()
    others = [0, 2, 3, 5]
    assert torch.equal(sparse.detach()[others], start[others])
    assert defect(projunn.matrix_view(sparse).detach()) < 1e-6
    if factorization == "svd":  # the others draw their random numbers for the whole bank
        torch.testing.assert_close(sparse.detach()[[1, 4]], few.detach(), atol=2e-6, rtol=0)
    else:
        assert not torch.equal(sparse.detach()[1], start[1])


def test_repeated_indices_add_up():
    weight = bank(torch.float32)
    select_blocks(weight, torch.tensor([2, 2])).sum().backward()
    dense = weight.grad.to_dense()
    torch.testing.assert_close(dense[2], torch.full((5, 5), 2.0))
    optim.SGD([weight], lr=0.1).step()


def test_a_bank_that_a_conversion_put_into_the_slot_is_known():
    with torch.device("meta"):
        module = nn.Module()
        module.bank = projunn.UnitaryParameter(torch.empty(6, 5, 5))
    module.to_empty(device="cpu")
    projunn.init.identity_(module.bank.data)
    assert select_blocks(module.bank, torch.tensor([4, 1])).shape == (2, 5, 5)


def test_what_cannot_be_selected():
    layer = BlockUnitaryLinear(2, 3)
    with pytest.raises(ValueError, match="bank: got shape"):
        select_blocks(layer.weight, torch.tensor([0]))
    with pytest.raises(ValueError, match="indices: got shape"):
        select_blocks(bank(torch.float32), torch.tensor(0))
