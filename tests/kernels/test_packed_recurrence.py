"""The time loop of packed sequences and with resets: the operator, its formula, and the kernels."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import projunn
from projunn.nn import UnitaryRNN
from projunn.nn.recurrent import sequences
from projunn_kernels import RecurrenceBackward, recurrence, recurrence_backward
from projunn_kernels.time_loop import eager, padded, plain, steps
from projunn_kernels.time_loop.arguments import Recurrence

SIZES = [5, 5, 4, 4, 1, 1]
CASES = [("tanh", False), ("relu", False), ("modrelu", False), ("modrelu", True), ("tanh", True)]


def draw(nonlinearity, complex_, n, dtype, projects):
    """Arguments of the loop; with states that stay away from the poles of the complex tanh."""
    pair, rows = (2,) * complex_, sum(SIZES)
    small = 0.1 if complex_ and nonlinearity == "tanh" else 0.4
    u = (
        torch.randn(rows, 3, dtype=dtype)
        if projects
        else small * torch.randn(rows, n, *pair, dtype=dtype)
    )
    h, w = (small * torch.randn(s, n, *pair, dtype=dtype) for s in (SIZES[0], n))
    b = 0.1 * torch.randn(n, dtype=dtype) if nonlinearity == "modrelu" else None
    projection = [None, None]
    if projects:
        outputs = n * (1 + complex_)
        projection = [small * torch.randn(*s, dtype=dtype) for s in ((outputs, 3), (outputs,))]
    return [u, h, w / n**0.5, b, nonlinearity, *projection]


def gradients(arguments, resets, cotangents):
    leaves = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    results = recurrence(*leaves, batch_sizes=SIZES, resets=resets)
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return [*results, *torch.autograd.grad(results, wanted, cotangents)]


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize("with_resets", [False, True])
def test_operator_and_formula(nonlinearity, complex_, with_resets):
    arguments = draw(nonlinearity, complex_, 4, torch.float64, projects=not with_resets)
    resets = torch.rand(sum(SIZES)) < 0.3 if with_resets else None
    call = Recurrence(*arguments, batch_sizes=SIZES, resets=resets)
    torch.testing.assert_close(plain.recurrence(call), eager.recurrence(call))
    states, last = eager.recurrence(call)
    backward = RecurrenceBackward(
        grad=torch.randn_like(states),
        grad_last=torch.randn_like(last),
        inputs=arguments[0],
        states=states,
        initial=arguments[1],
        weight=arguments[2],
        bias=arguments[3],
        nonlinearity=nonlinearity,
        input_weight=arguments[5],
        batch_sizes=SIZES,
        resets=resets,
    )
    with torch.no_grad():
        for own, other in zip(
            recurrence_backward(backward), plain.recurrence_backward(backward), strict=True
        ):
            torch.testing.assert_close(own, other)

    leaves = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.library.opcheck(torch.ops.projunn.recurrence.default, (*leaves, SIZES, resets))


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize("projects", [False, True])
@pytest.mark.parametrize("with_resets", [False, True])
def test_kernels_take_packed_sequences(kernels, nonlinearity, complex_, projects, with_resets):
    exact = draw(nonlinearity, complex_, 6, torch.float64, projects)
    resets = torch.rand(sum(SIZES)) < 0.3 if with_resets else None
    with projunn.backend("torch"):
        states, last = recurrence(*exact, batch_sizes=SIZES)
        cotangents = [torch.randn_like(states), torch.randn_like(last)]
        expected = gradients(exact, resets, cotangents)
    single = [a.to(kernels.device, torch.float32) if isinstance(a, torch.Tensor) else a for a in exact]
    resets = resets.to(kernels.device) if with_resets else None
    with kernels.backend():
        found = gradients(single, resets, [c.to(kernels.device, torch.float32) for c in cotangents])
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own.cpu().double(), other, atol=1e-5, rtol=1e-4)


def test_rows_of_packed_sequences_are_found_without_a_device():
    """What a tensor of the device has would have to be waited for; one without memory cannot tell."""
    nowhere = torch.device("meta")
    assert padded._rows(SIZES, nowhere).shape == (sum(SIZES),)
    assert padded._ends(SIZES, nowhere).shape == (SIZES[0],)


def test_packed_sequences_are_one_launch_with_resets_too(launches, kernels):
    arguments = draw("tanh", False, 6, torch.float32, projects=False)
    arguments = [a.to(kernels.device) if isinstance(a, torch.Tensor) else a for a in arguments]
    found = recurrence(*arguments, batch_sizes=SIZES)
    none = torch.zeros(sum(SIZES), dtype=torch.bool, device=kernels.device)
    others = recurrence(*arguments, batch_sizes=SIZES, resets=none)
    assert [name for name, _ in launches] == ["recurrence"] * 2
    for own, other in zip(found, others, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_resets", [False, True])
def test_factors_of_the_kernels_are_those_of_pytorch(kernels, complex_, packed, with_resets):
    u, h, w, b, name, *_ = draw("modrelu", complex_, 6, torch.float64, projects=False)
    if not packed:
        u = u.unflatten(0, (4, SIZES[0]))
    resets = torch.rand(u.shape[: u.ndim - 1 - complex_]) < 0.3 if with_resets else None
    sizes = SIZES if packed else None
    states, last = recurrence(u, h, w, b, name, batch_sizes=sizes, resets=resets)
    call = {
        "grad": None,
        "grad_last": torch.randn_like(last),
        "inputs": u,
        "states": states,
        "initial": h,
        "weight": w,
        "bias": b,
        "basis": torch.randn(6, 2, *(2,) * complex_, dtype=torch.float64),
    }
    more = {"nonlinearity": name, "batch_sizes": sizes}
    expected = recurrence_backward(RecurrenceBackward(**call, **more, resets=resets))
    single = {k: None if t is None else t.to(kernels.device, torch.float32) for k, t in call.items()}
    resets = resets.to(kernels.device) if with_resets else None
    with kernels.backend():
        found = recurrence_backward(RecurrenceBackward(**single, **more, resets=resets))
    products = []
    for result in (found, expected):
        left, right = (_numbers(t.cpu().double(), complex_) for t in result[-2:])
        products.append(left @ right.mH)
    torch.testing.assert_close(*products, atol=1e-5, rtol=1e-4)


def _numbers(tensor, complex_):
    return torch.view_as_complex(tensor) if complex_ else tensor


def test_a_gpu_is_told_where_rows_lie_without_waiting_for_it(monkeypatch):
    """A copy from memory that is not pinned waits for all that the GPU has been asked for."""
    packed = pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    resets = packed._replace(data=torch.zeros(6, dtype=torch.bool))
    copied = []
    for module in (sequences, steps):
        monkeypatch.setattr(module, "sent", lambda host, _: copied.append(host.tolist()) or host)
    UnitaryRNN(3, 5, bidirectional=True)(packed, resets=resets)
    # Each row from the other end of its sequence, the step before in there, and the last rows, twice.
    assert copied == [[5, 3, 4, 1, 2, 0], [0, 1, 2, 4], [5, 3], [5, 3]]
