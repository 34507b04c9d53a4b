"""A step of ``capturable=True`` reads nothing from its device, so that a CUDA graph can hold it.

Tensors on the meta device stand for those on a GPU.  They have no numbers: whatever the host would wait
for raises.  The operations run what they run on a GPU, as if a graph were captured; only the kernels do
nothing.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

import projunn
from projunn import UnitaryParameter, optim
from projunn.nn import BlockUnitaryLinear, UnitaryLinear, UnitaryRNN
from projunn.optim.drift import steps_left
from projunn.optim.gradient import dense
from projunn_kernels import keeping, launching, private, selfcheck
from projunn_kernels.backends import interpreting
from projunn_kernels.polish import eager as polishing
from tests.combinations import pairwise

RULES = {
    "SGD": {"momentum": 0.9, "dampening": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "AdamW": {"amsgrad": True},
    "Lion": {},
}
POLISH = ["residual", "correct"]
KINDS = [torch.float32, torch.complex64, torch.float64]


class NothingCrosses(TorchDispatchMode):
    """Raises where numbers are copied from one device to another: a replay would copy the old ones."""

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        if operator.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = arguments[1] if operator.overloadpacket is torch.ops.aten.copy_ else arguments[0]
            if source.device != result.device:
                raise RuntimeError(f"{operator}: copies from {source.device} to {result.device}")
        return result


class Idle:
    """A kernel that does nothing."""

    def __init__(self, kernel):
        pass

    def __getitem__(self, grid):
        return lambda **arguments: None


def pretend_to_capture(patch):
    """Tensors on the meta device are those of a graph from now on."""
    patch.setattr(private, "is_fake", lambda tensor: False)
    patch.setattr(keeping, "capturing", lambda device: True)
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


@pytest.fixture(params=["kernels", "PyTorch"])
def captured(request, monkeypatch):
    """``captured(step)`` runs a step that has been warmed up, as in the capture of a graph."""

    def run(step):
        if request.param == "kernels" and not interpreting():
            pytest.skip("needs Triton's interpreter")
        with projunn.backend("interpret" if request.param == "kernels" else "torch"):
            step()  # makes the state
            with monkeypatch.context() as patch:
                pretend_to_capture(patch)
                patch.setattr(torch, "tensor", None)  # it copies from the host
                with selfcheck.suspended(), launching.intercepted(Idle), NothingCrosses():
                    step()

    return run


def optimizer_of(rule, parameters, **options):
    cls = getattr(optim, "SGD" if rule == "nesterov" else rule)
    options = {"lr": 0.1, "capturable": True, "polish_every": 3, **RULES.get(rule, {}), **options}
    return cls(parameters, **options)


SIZES = [(1, (3, 16, 16)), (2, (3, 16, 16)), (1, (16, 130)), (2, (16, 130)), (9, (2, 2, 20, 12))]


@pytest.mark.parametrize(("rule", "size", "kind"), pairwise(RULES, SIZES, KINDS), ids=str)
def test_dense_gradients(captured, rule, size, kind):
    k, size = size
    weights = [UnitaryParameter(torch.empty(size, dtype=kind, device="meta")) for _ in range(2)]
    optimizer = optimizer_of(rule, weights, rank=k, retraction=["exp", "polar", "cayley"][k % 3])
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    captured(optimizer.step)
    for state in optimizer.state.values():
        assert {value.device.type for value in state.values()} == {"meta"}


@pytest.mark.parametrize("size", [(12, 16), (3, 20, 40)], ids=str)
def test_steps_of_many_columns(captured, size):
    """In a basis of the whole space, and in one of their own."""
    weights = [UnitaryParameter(torch.empty(size, dtype=torch.complex64, device="meta")) for _ in "ab"]
    optimizer = optimizer_of("AdamW", weights, rank=9, retraction="polar")
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    captured(optimizer.step)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("size", [(12, 12), (3, 12, 12), (16, 130), (12, 9)], ids=str)
def test_steps_along_the_tangent_part(captured, kind, k, size):
    weight = UnitaryParameter(torch.empty(size, dtype=kind, device="meta"))
    retraction = ["exp", "polar", "cayley"][k % 3]
    options = {"rank": k, "retraction": retraction, "factorization": "tangent"}
    optimizer = optimizer_of("SGD", [weight], **options)
    weight.grad = torch.empty_like(weight)
    captured(optimizer.step)


@pytest.mark.parametrize(("rule", "size", "kind"), pairwise(RULES, [(16, 16), (3, 16, 130)], KINDS[:2]))
def test_steps_that_read_once(captured, rule, size, kind):
    weights = [UnitaryParameter(torch.empty(size, dtype=kind, device="meta")) for _ in range(2)]
    optimizer = optimizer_of(rule, weights, factorization="single_pass")
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    captured(optimizer.step)


def test_what_is_left_to_a_polish(captured):
    sizes = ((3, 16, 16), (16, 130), (3, 16, 16))
    weights = [UnitaryParameter(torch.empty(size, device="meta")) for size in sizes]
    optimizer = optimizer_of(
        "SGD", [{"params": weights[:2]}, {"params": weights[2:], "polish_every": 5}]
    )
    for weight in weights:
        weight.grad = torch.empty_like(weight)

    def step():
        optimizer.step()
        assert steps_left(optimizer._members()).device.type == "meta"

    captured(step)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("unitary_lr", [None, 0.02])
def test_a_rate_on_the_device(captured, rule, unitary_lr):
    weight = UnitaryParameter(torch.empty(8, 8, device="meta"))
    rate = torch.empty((), device="meta")
    optimizer = optimizer_of(rule, [weight], lr=0.1, unitary_lr=unitary_lr)
    optimizer.param_groups[0] |= {"lr": rate, "base_lr": rate.clone()}
    weight.grad = torch.empty_like(weight)
    captured(optimizer.step)


SKETCHED = [rule for rule in RULES if rule != "Lion"]


@pytest.mark.parametrize(
    ("rule", "ranks", "kind"),
    pairwise(SKETCHED, [(1, 1), (4, 2), (9, 9)], [torch.complex64, torch.float64]),
    ids=str,
)
def test_training_of_sketched_layers(captured, rule, ranks, kind):
    k, rank = ranks
    layers = torch.nn.Sequential(
        UnitaryLinear(12, 12, bias=False, dtype=kind, sketch_rank=k, device="meta"),
        BlockUnitaryLinear(3, 4, bias=False, dtype=kind, sketch_rank=min(k, 4), device="meta"),
    )
    options = {"centered": False} if rule == "RMSprop" else {}
    options |= {"amsgrad": False} if rule == "AdamW" else {}
    optimizer = optimizer_of(rule, layers.parameters(), rank=rank, **options)
    x = torch.empty(5, 12, dtype=kind, device="meta")

    def step():
        optimizer.zero_grad()
        layers(x).abs().sum().backward()
        optimizer.step()

    captured(step)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_training_of_a_recurrence(captured, kind):
    rnn = UnitaryRNN(3, 12, dtype=kind, device="meta")
    optimizer = optimizer_of("RMSprop", [rnn.weight_hh_l0])
    x = torch.empty(7, 2, 3, dtype=kind, device="meta")

    def step():
        optimizer.zero_grad()
        rnn(x)[0].abs().sum().backward()
        optimizer.step()

    captured(step)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.isfinite().all()),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.tensor([1.0, 2.0, 3.0], device="meta"),
    ],
)
def test_what_reads_or_copies_would_be_seen(captured, look):
    seen = []

    def step():
        if seen:
            look(torch.empty(3, device="meta"))
        seen.append(1)

    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        captured(step)


def test_what_cannot_be_captured_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(dense, "capturing", lambda tensor: True)
    weight = UnitaryParameter(torch.eye(4).repeat(3, 1, 1))
    weight.grad = torch.ones_like(weight)
    for name in ("svd", "lsi", "column"):
        optimizer = optim.SGD([weight], capturable=True, factorization=name)
        with pytest.raises((RuntimeError, ValueError), match=f'factorization.*"{name}".*"subspace"'):
            optimizer.step()
    values = torch.ones(1, 4, 4)
    weight.grad = torch.sparse_coo_tensor([[1]], values, (3, 4, 4), check_invariants=True)
    with pytest.raises(RuntimeError, match=r"sparse gradient.*CUDA graph"):
        optim.SGD([weight], capturable=True).step()


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_polish_that_the_device_decides_is_put_to_use_when_due(monkeypatch, backend, dtype):
    """Without kernels, too: float64, or PyTorch chosen for float32."""
    monkeypatch.setattr(polishing, "on_device", lambda tensor: True)
    weight = torch.linalg.qr(torch.randn(2, 6, 6, dtype=dtype))[0] * 1.01
    with projunn.backend(backend):
        for step in (1, 2):
            before = weight.clone()
            polishing.polish_when_due([weight], [torch.tensor(float(step))], 3, False, [])
            assert torch.equal(weight, before)
        polishing.polish_when_due([weight], [torch.tensor(3.0)], 3, False, [])
    assert (projunn.unitarity_defect(before) > 1e-2).all()
    assert (projunn.unitarity_defect(weight) < 1e-3).all()


@pytest.mark.interpreter_only
@pytest.mark.parametrize("capturable", [True, False])
@pytest.mark.parametrize("rule", ["SGD", "nesterov", "AdamW"])
@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
@pytest.mark.parametrize("size", [(16, 16), (2, 20, 12)], ids=str)
def test_parameters_of_one_shape_are_polished_by_two_launches(monkeypatch, capturable, rule, kind, size):
    """Where the device counts steps, at every one, and where the host does, at those that are due."""
    for count in (1, 5):
        weights = [UnitaryParameter(torch.empty(size, dtype=kind, device="meta")) for _ in range(count)]
        options = {"dampening": 0} if rule == "SGD" else {}
        optimizer = optimizer_of(rule, weights, capturable=capturable, polish_every=2, **options)
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        launched = []

        class Listed(Idle):
            def __init__(self, kernel, listed=launched):
                listed.append(kernel.__name__.removesuffix("_kernel"))

        polished = []
        with projunn.backend("interpret"), selfcheck.suspended(), launching.intercepted(Listed):
            optimizer.step()  # makes the state
            with monkeypatch.context() as patch:
                patch.setattr(private, "is_fake", lambda tensor: False)
                patch.setattr(keeping, "capturing", lambda device: True)
                for _ in range(3):
                    launched.clear()
                    optimizer.step()
                    polished.append([name for name in launched if name in POLISH])
                optimizer._polishes = False  # as in the graph of `CapturedStep` in which none is due
                launched.clear()
                optimizer.step()
        assert polished == [POLISH, POLISH if capturable else [], POLISH]
        assert launched
        assert not [name for name in launched if name in POLISH]
