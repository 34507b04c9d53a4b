"""FSDP2 over blocks and frequencies, and distributed checkpoints, in two and in four processes."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from projunn import (
    OffManifoldWarning,
    matrix_view,
    project_,
    unitarity_defect,
    unitary_parameters,
)
from projunn.distributed import replicate
from projunn.nn import UnitaryConv2d, UnitaryLinear
from projunn.optim import SGDG
from projunn.shards import own_matrices
from tests.dense import defect
from tests.distributed import scenarios
from tests.distributed.job import run

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed over gloo"
)
CLOSE = {"rtol": 0, "atol": 1e-7}
KINDS = ["conv", "complex conv", "blocks", "bank"]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run(4, tmp_path_factory.getbasetemp() / _made(tmp_path_factory, "four"), "sharded", "save")


@pytest.fixture(scope="module")
def two(four, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / _made(tmp_path_factory, "two")
    names = "sharded", "refused", "replicated", "replicated_from_meta", "load"
    return run(2, folder, *names)


def _made(factory, name):
    return factory.mktemp(name, numbered=False)


def assert_close(results, expected):
    for p, q in zip(results, expected, strict=True):
        torch.testing.assert_close(p, q, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 4])
def test_banks_and_convolutions_step_where_they_are_sharded(kind, world, request):
    results = request.getfixturevalue({2: "two", 4: "four"}[world])["sharded"]
    expected = scenarios.sharded_alone(kind, world)
    for by_kind in results:
        weights, skipped = by_kind[kind]
        assert_close(weights, expected)
        assert skipped == 0
        for p in weights:
            matrices = (
                torch.view_as_complex(p) if kind != "bank" and p.ndim > 3 and p.shape[-1] == 2 else p
            )
            if p.ndim > 2 and kind != "blocks":
                assert defect(matrices) < 1e-12


@pytest.mark.parametrize("name", ["rows", "tensor parallel"])
def test_a_matrix_that_is_cut_is_refused_and_it_is_said_what_to_do(name, two):
    for messages in two["refused"]:
        assert "projunn.distributed.replicate(model)" in messages[name]
        assert "ignored_params" in messages[name]


@pytest.mark.parametrize("rule", [torch.optim.SGD, SGDG])
def test_steps_of_others_on_sharded_weights_are_not_silent(rule):
    """Of a bank each process measures its own matrices; a matrix that is cut nobody can measure."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        bank, cut = UnitaryConv2d(2, 2, 3), UnitaryLinear(4, 4)
        flat = FullyShardedDataParallel(UnitaryLinear(4, 4), device_id=torch.device("cpu"))
        fully_shard(bank), fully_shard(cut)
        for model, x, said in (
            (bank, torch.randn(2, 2, 3, 3), r"weight of FSDPUnitaryConv2d \(.*projunn.project_"),
            (cut, torch.randn(3, 4), "cannot be measured .*: weight of FSDPUnitaryLinear.*replicate"),
            (flat, torch.randn(3, 4), "cannot be measured .*: weight of UnitaryLinear.*replicate"),
        ):
            optimizer = rule(model.parameters(), lr=0.1)
            model(x).pow(4).sum().backward()
            with pytest.warns(OffManifoldWarning, match=said):
                optimizer.step()
        project_(bank)
        for p in (cut.weight, bank.weight, bank.weight.detach(), bank.state_dict()["weight"]):
            whole = matrix_view(p.full_tensor(), pairs=p.ndim > 2)
            torch.testing.assert_close(unitarity_defect(p), unitarity_defect(whole))
        assert all(defect(own_matrices(p)) < 1e-12 for p in unitary_parameters(bank))
    finally:
        dist.destroy_process_group()


def test_sketches_of_sharded_weights_are_refused(two):
    for messages in two["refused"]:
        assert "sketch_rank=None" in messages["sketched"]


@pytest.mark.parametrize("name", ["replicated", "replicated_from_meta"])
def test_dense_weights_are_held_by_every_rank_while_the_rest_is_sharded(name, two):
    results = two[name]
    for p, q in zip(*results, strict=True):
        assert torch.equal(p, q)
    assert_close(results[0], scenarios.alone("linear", 2, "SGD, svd"))


def test_frozen_weights_are_replicated_and_averaged_once_they_learn(monkeypatch):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layer = replicate(UnitaryLinear(2, 2).requires_grad_(False))
        assert not layer.weight.requires_grad
        averaged = []
        monkeypatch.setattr(dist, "all_reduce", lambda tensor, **_: averaged.append(tensor))
        layer.requires_grad_(True)(torch.randn(3, 2)).sum().backward()
        assert [tensor is layer.weight.grad for tensor in averaged] == [True]
    finally:
        dist.destroy_process_group()


def test_weights_without_numbers_cannot_be_replicated():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="module: weight of UnitaryLinear is on the meta device"):
            replicate(UnitaryLinear(2, 2, device="meta"))
    finally:
        dist.destroy_process_group()


def test_a_checkpoint_of_four_ranks_goes_on_in_two(two, four):
    for results in two["load"]:
        assert_close(results, four["save"][0])
