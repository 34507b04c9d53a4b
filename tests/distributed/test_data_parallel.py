"""DistributedDataParallel with unitary layers, in two and in four processes."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from projunn import optim
from projunn.distributed import reduce_sketches
from projunn.nn import UnitaryLinear
from tests.distributed import scenarios
from tests.distributed.job import run

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed over gloo"
)
TWO = (
    *("joint_batch", "dense", "compiled", "not_prepared", "accumulated", "empty_on_one_rank"),
    *("bytes_of_a_step", "zero", "zero_of_many"),
)
CLOSE = {"rtol": 0, "atol": 1e-5}  # float64; directions of small singular values amplify rounding


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(2, tmp_path_factory.mktemp("two"), *TWO)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run(4, tmp_path_factory.mktemp("four"), "joint_batch", "a_group_of_some")


def assert_replicas(results):
    """Bit-identical on all ranks."""
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], other, strict=True))


def assert_close(results, expected):
    for p, q in zip(results, expected, strict=True):
        torch.testing.assert_close(p, q, **CLOSE)


SKETCHED = [kind for kind in scenarios.KINDS if kind != "constrained complex"]


@pytest.mark.parametrize("kind", SKETCHED)
@pytest.mark.parametrize("world", [2, 4])
def test_sketched_gradients_are_those_of_the_joint_batch(kind, world, request):
    results = request.getfixturevalue({2: "two", 4: "four"}[world])["joint_batch"]
    results = [by_kind[kind] for by_kind in results]
    assert_replicas(results)
    rule = list(scenarios.RULES)[list(scenarios.KINDS).index(kind) % len(scenarios.RULES)]
    assert_close(results[0], scenarios.alone(kind, world, rule, sketch_rank=2))


@pytest.mark.parametrize("view", [False, True], ids=["", "gradient_as_bucket_view"])
@pytest.mark.parametrize("kind", ["linear", "complex", "constrained complex", "rnn", "complex conv"])
def test_dense_gradients_are_averaged_as_ever(kind, view, two):
    results = [by_kind[kind, view] for by_kind in two["dense"]]
    assert_replicas(results)
    assert_close(results[0], scenarios.alone(kind, 2))


def test_a_compiled_model_trains_like_an_eager_one(two):
    assert_replicas(two["compiled"])
    assert_close(two["compiled"][0], scenarios.alone("linear", 2, sketch_rank=2))


def test_without_preparation_it_is_said_what_to_call(two):
    for message in two["not_prepared"]:
        assert "projunn.distributed.reduce_sketches(model)" in message


def test_accumulation_under_no_sync(two):
    assert_replicas(two["accumulated"])
    module = scenarios.model("linear", sketch_rank=2)
    optimizer = scenarios.RULES["SGD"](module.parameters())
    inputs = scenarios.batches("linear", 2, 4)
    for pair in (inputs[:2], inputs[2:]):
        optimizer.zero_grad()
        for x in pair:
            scenarios.loss_of(module(x)).backward()
        optimizer.step()
    assert_close(two["accumulated"][0], scenarios.values(module))


@pytest.mark.parametrize("kind", ["linear", "rnn", "conv", "complex conv"])
def test_a_rank_with_an_empty_batch_takes_part(kind, two):
    results = [by_kind[kind] for by_kind in two["empty_on_one_rank"]]
    assert_replicas(results)
    module = scenarios.model(kind, sketch_rank=2)
    output = module(scenarios.batches(kind, 2)[0][:5])
    (output.abs().square().sum() / 2).backward()
    dense = [p.grad.to_dense() if hasattr(p.grad, "to_dense") else p.grad for p in module.parameters()]
    assert_close(results[0], dense)


def test_the_bytes_of_a_step_are_those_of_the_factors(two):
    n, k, size = 64, 2, 8
    for count in two["bytes_of_a_step"]:
        assert sorted(count[2]) == sorted([n * k * size, n * k * size, n * size])
        assert sum(count[None]) == (n * n + n) * size


def test_sharded_optimizer_state(two):
    results = [by_rank[None] for by_rank in two["zero"]]
    assert_replicas(results)
    assert_close(results[0], scenarios.alone("linear", 2, "SGD, svd"))
    for by_rank in two["zero"]:
        assert "ZeroRedundancyOptimizer" in by_rank[2]


def test_the_default_rate_of_sharded_optimizer_state_counts_the_parameters_of_all_ranks(two):
    module = scenarios.chain()
    whole = optim.AdamW(module.parameters(), lr=1e-3, rank=2, factorization="svd")
    expected, weights = scenarios.train_chain(module, whole)
    assert expected == [256 / 20, 256 / 19]
    for angles, found in two["zero_of_many"]:
        assert angles == expected
        assert_close(found, weights)


def test_each_half_of_the_ranks_is_a_job_of_its_own(four):
    results = four["a_group_of_some"]
    assert_replicas(results)
    assert_close(results[0], scenarios.alone("linear", 2, sketch_rank=2))


def test_without_a_process_group_it_is_refused_and_a_copy_is_a_job_of_one_rank():
    layer = UnitaryLinear(4, 4, sketch_rank=1)
    with pytest.raises(RuntimeError, match="init_process_group"):
        reduce_sketches(nn.Sequential(layer))
    layer.weight.sketch.group = "world"
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad.rank == 1
