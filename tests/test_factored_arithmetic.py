"""Whatever training loops do to a sketched gradient is right, or refused in words."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from projunn import FactoredTensor
from projunn.nn import UnitaryLinear
from projunn.optim import SGD

M, N, RANK = 5, 4, 2
KINDS = {
    "real": (torch.float32, False, ()),
    "double": (torch.float64, False, ()),
    "complex": (torch.complex64, False, ()),
    "pairs": (torch.complex64, True, ()),
    "bank": (torch.float32, False, (3,)),
    "bank of pairs": (torch.complex64, True, (2,)),
}


def factored(kind, rank=RANK, m=M, n=N):
    dtype, pairs, batch = KINDS[kind]
    left, right = (torch.randn(*batch, size, rank, dtype=dtype) for size in (m, n))
    return FactoredTensor(left, right, pairs)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def others(kind):
    """What people multiply, divide and add gradients by: numbers, masks, rows, columns, gradients."""
    a = factored(kind)
    dense = a.to_dense()
    left = a.stored_left
    return {
        "int": 3,
        "float": 0.3,
        "complex": 1 + 2j,
        "0-d": torch.tensor(0.3),
        "0-d double": torch.tensor(0.3, dtype=torch.float64),
        "0-d complex": torch.tensor(1 + 2j),
        "one element": torch.tensor([0.3]),
        "one element of doubles": torch.tensor([0.3], dtype=torch.float64),
        "dense": torch.randn_like(dense),
        "mask": torch.rand(dense.shape) > 0.5,
        "row": torch.randn(dense.shape[-1]),
        "column": torch.randn(*dense.shape[:-1], 1),
        "like the factor": torch.randn_like(left),
        "like the rank": torch.randn(RANK),
        "too many axes": torch.randn((1,) * (dense.ndim + 1)),
        "factors": factored(kind),
        "factors of rank 3": factored(kind, 3),
        "factors of one row": factored(kind, m=1),
        "factors of a bank": factored("bank" if kind != "bank" else "real"),
    }


OPERATIONS = {
    "mul": torch.mul,
    "div": torch.div,
    "add": torch.add,
    "sub": torch.sub,
    "add, alpha": lambda a, b: torch.add(a, b, alpha=2),
    "add, complex alpha": lambda a, b: torch.add(a, b, alpha=2j),
    "mul_": lambda a, b: a.mul_(b),
    "div_": lambda a, b: a.div_(b),
    "add_": lambda a, b: a.add_(b),
    "sub_": lambda a, b: a.sub_(b),
    "copy_": lambda a, b: a.copy_(b),
    "lerp_": lambda a, b: a.lerp_(b, 0.3),
    "*": lambda a, b: a * b,
    "-": lambda a, b: a - b,
    "==": lambda a, b: a == b,
    "<": lambda a, b: a < b,
}


def entries(x):
    return x.to_dense() if isinstance(x, FactoredTensor) else x


def outcome(operation, *arguments):
    try:
        return operation(*arguments)
    except (TypeError, RuntimeError) as error:
        return error


@pytest.mark.parametrize("operation", OPERATIONS)
def test_arithmetic_is_right_or_refused(kind, operation):
    """With factors as either argument; a result has the dtype, shape and entries of the dense one."""
    run = OPERATIONS[operation]
    for name, swapped in itertools.product(others(kind), (False, True)):
        torch.manual_seed(1)
        pair = [factored(kind), others(kind)[name]]
        if swapped:
            pair.reverse()
        if not isinstance(pair[0], torch.Tensor):
            continue
        dense = [entries(x).clone() if isinstance(x, torch.Tensor) else x for x in pair]
        expected, got = outcome(run, *dense), outcome(run, *pair)
        if isinstance(got, Exception):
            # torch's own complaint, or ours, which says what to do.
            assert isinstance(expected, Exception) or isinstance(got, TypeError), (name, got)
            continue
        assert not isinstance(expected, Exception), (name, swapped, expected)
        assert got.shape == expected.shape, name
        assert got.dtype == expected.dtype, name
        close = {"rtol": 1e-5, "atol": 1e-5, "msg": lambda m, n=name: f"{n}: {m}"}
        torch.testing.assert_close(entries(got), expected, **close)
        torch.testing.assert_close(entries(pair[0]), dense[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, int])
def test_conversions_are_right_or_refused(kind, dtype):
    a = factored(kind)
    if isinstance(got := outcome(lambda: a.to(dtype)), Exception):
        assert isinstance(got, TypeError)
        assert dtype in (int, torch.complex64) or kind == "complex" or "pairs" in kind
        return
    tolerance = {"atol": 0.1, "rtol": 0.1} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(entries(got), a.to_dense().to(dtype), **tolerance)


@pytest.mark.parametrize("order", [0, 1, 1.5, 2, 3, float("inf"), -float("inf")])
def test_norms_of_every_order(kind, order, monkeypatch):
    monkeypatch.setattr("projunn.factored_rules._PANEL", 9)
    a = factored(kind)
    expected = torch.linalg.vector_norm(a.to_dense(), order)
    torch.testing.assert_close(torch.linalg.vector_norm(a, order), expected)
    torch.testing.assert_close(a.norm(order), expected)
    every = tuple(range(a.ndim))
    kept = torch.linalg.vector_norm(a, order, every, True, dtype=a.dtype)
    torch.testing.assert_close(kept, expected.reshape((1,) * a.ndim))
    with pytest.raises(TypeError, match="to_dense"):
        torch.linalg.vector_norm(a, order, -1)


def test_what_monitoring_reads(kind):
    a = factored(kind)
    dense = a.to_dense()
    for read in (
        *(torch.isnan, torch.abs, torch.sum, torch.mean, torch.std),
        *(lambda t: t == t, lambda t: t != 0, lambda t: (t == 0).any(), torch.count_nonzero),
        *(lambda t: t**2, torch.square),
    ):
        torch.testing.assert_close(read(a), read(dense))
    if not a.is_complex():
        for read in (
            *(torch.max, torch.min, torch.histc, torch.isinf, torch.isfinite),
            *(lambda t: t > 0, lambda t: t.amax(-1)),
        ):
            torch.testing.assert_close(read(a), read(dense))
    np.testing.assert_array_equal(np.asarray(a), dense.numpy())
    np.testing.assert_array_equal(a.detach().cpu().numpy(), dense.numpy())
    assert a.tolist() == dense.tolist()
    for read in (lambda t: t.view(-1), lambda t: t.reshape(-1, 1), lambda t: t.flatten()):
        torch.testing.assert_close(read(a), read(dense))
        with pytest.raises(RuntimeError, match="make a clone"):  # the gradient would not change
            read(a).zero_()


def test_what_is_detached_of_a_gradient_is_still_that_gradient(kind):
    """``p.grad.data.mul_(c)`` and ``p.grad.detach_().zero_()`` are how many loops scale and clear."""
    a = factored(kind)
    dense = a.to_dense()
    a.data.mul_(0.5)
    torch.testing.assert_close(a.to_dense(), dense / 2)
    b = a.detach()
    b += factored(kind)
    torch.testing.assert_close(a.to_dense(), b.to_dense())
    a.detach_().zero_()
    assert b.to_dense().count_nonzero() == 0
    c = a.clone()
    c += factored(kind)
    assert a.to_dense().count_nonzero() == 0


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("order", [1, 2, float("inf")])
def test_clip_grad_norm_of_any_order(order, foreach):
    parameters = [nn.Parameter(torch.zeros(M, N)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad, parameters[1].grad = factored("real"), torch.randn(3)
    dense = [entries(p.grad).clone() for p in parameters]
    expected = torch.cat([d.flatten() for d in dense]).norm(order)
    total = nn.utils.clip_grad_norm_(parameters, 0.1, order, foreach=foreach)
    torch.testing.assert_close(total, expected)
    for p, d in zip(parameters, dense, strict=True):
        torch.testing.assert_close(entries(p.grad), d * 0.1 / total, rtol=1e-4, atol=1e-6)
    assert isinstance(parameters[0].grad, FactoredTensor)


def backward(layer):
    x = torch.randn(7, N)
    (layer(x).square() * torch.arange(1.0, 5)).sum().backward()


@pytest.mark.parametrize("foreach", [None, True, False])
def test_clip_grad_value_says_what_to_do_and_that_works(foreach):
    layer = UnitaryLinear(N, N, sketch_rank=2)
    optimizer = SGD(layer.parameters(), lr=0.1)
    backward(layer)
    with pytest.raises(TypeError, match=r"p\.grad = p\.grad\.to_dense\(\)"):
        nn.utils.clip_grad_value_(layer.parameters(), 0.1, foreach=foreach)
    layer.weight.grad = layer.weight.grad.to_dense()
    nn.utils.clip_grad_value_(layer.parameters(), 0.1, foreach=foreach)
    before = layer.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, layer.weight)
    optimizer.zero_grad()
    backward(layer)
    optimizer.step()


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_the_rank_does_not_grow_with_the_steps(foreach, momentum):
    """``zero_grad(set_to_none=False)``: the same steps as with the default, and no more columns."""
    torch.manual_seed(0)
    layer = UnitaryLinear(N, N, sketch_rank=2)
    other = UnitaryLinear(N, N, sketch_rank=2)
    other.load_state_dict(layer.state_dict())
    optimizers = [SGD(m.parameters(), 0.1, momentum, foreach=foreach) for m in (layer, other)]
    for step in range(20):
        for m, optimizer, to_none in zip((layer, other), optimizers, (False, True), strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad(set_to_none=to_none)
            backward(m)
            optimizer.step()
        assert layer.weight.grad.rank == 2
        assert torch.equal(layer.weight, other.weight)
    layer.zero_grad(set_to_none=False)
    assert layer.weight.grad.rank == 0
    before = layer.weight.detach().clone()
    SGD(layer.parameters(), 0.1).step()
    torch.testing.assert_close(layer.weight.detach(), before)


def test_gradients_and_starts_are_saved_and_read_without_running_code(tmp_path: Path):
    layer = UnitaryLinear(N, N, sketch_rank=2, dtype=torch.complex64)
    layer(torch.randn(3, N)).abs().sum().backward()
    content = {"weight": layer.weight, "grad": layer.weight.grad, "start": layer.weight.sketch}
    torch.save(content, tmp_path / "all.pt")
    loaded = torch.load(tmp_path / "all.pt", weights_only=True)
    for name in ("grad", "start"):
        assert type(loaded[name]) is type(content[name])
        torch.testing.assert_close(loaded[name].to_dense(), content[name].to_dense())
    assert type(loaded["weight"]) is type(layer.weight)
    assert loaded["weight"].pairs
    torch.testing.assert_close(loaded["weight"].sketch.left, layer.weight.sketch.left)
