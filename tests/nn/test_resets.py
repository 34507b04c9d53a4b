"""Resets in the middle of a sequence, by the kernels, through `UnitaryRNN`."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import projunn
from projunn.nn import UnitaryRNN, UnitaryRNNCell
from tests.combinations import pairwise
from tests.nn.sequences import by_loops, dense, loss, pack, unpacked
from tests.time_loops import CASES

LENGTHS = [4, 7, 1, 4]
LAYERS = [
    {},
    {"bidirectional": True},
    {"bidirectional": True, "sketch_rank": 5},
    {"checkpoint_every": 3},
    {"bidirectional": True, "checkpoint_every": 3, "sketch_rank": 5},
]


def drawn(*arguments, **options):
    """A layer in double precision whose states stay away from the poles of the complex tanh."""
    rnn = UnitaryRNN(3, 5, *arguments, **options)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if "weight_hh" not in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return rnn


def single(rnn, kernels):
    """The same layer in single precision, where the kernels are; and its dtype."""
    names = "num_layers", "nonlinearity", "batch_first", "bidirectional"
    names += "sketch_rank", "checkpoint_every"
    kind = torch.complex64 if rnn.is_complex else torch.float32
    options = {name: getattr(rnn, name) for name in names}
    own = UnitaryRNN(3, 5, dtype=kind, device=kernels.device, **options)
    own.load_state_dict({name: value.float() for name, value in rnn.state_dict().items()})
    return own, kind


def close(own, other):
    torch.testing.assert_close(own.detach().cpu().to(other.dtype), other, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(("nonlinearity", "complex_"), CASES)
@pytest.mark.parametrize("sketch_rank", [None, 5])
def test_equals_a_loop_of_the_cell(kernels, nonlinearity, complex_, sketch_rank):
    kind = torch.complex128 if complex_ else torch.float64
    cell = UnitaryRNNCell(3, 5, nonlinearity=nonlinearity, dtype=kind)
    with torch.no_grad():
        cell.bias_ih.normal_().mul_(0.1)
    x, h = 0.1 * torch.randn(6, 4, 3, dtype=kind), 0.1 * torch.randn(4, 5, dtype=kind)
    resets = torch.rand(6, 4) < 0.3
    rnn = UnitaryRNN(3, 5, nonlinearity=nonlinearity, dtype=kind, sketch_rank=sketch_rank)
    rnn.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    rnn, low = single(rnn, kernels)

    leaves = [t.requires_grad_() for t in (x, h)]
    states, state = [], h
    for t in range(6):
        state = cell(x[t], torch.where(resets[t].unsqueeze(-1), 0, state))
        states.append(state)
    exact = [*leaves, *cell.parameters()]
    loss(states, state).backward()

    own = [t.detach().to(kernels.device, low).requires_grad_() for t in leaves]
    with kernels.backend():
        found, last = rnn(own[0], own[1].unsqueeze(0), resets=resets.to(kernels.device))
        loss([found.cpu()], last.cpu()).backward()
    close(found, torch.stack(states).detach())
    close(last[0], state.detach())
    for mine, other in zip([*own, *rnn.parameters()], exact, strict=True):
        close(dense(mine.grad), other.grad)


@pytest.mark.parametrize(
    ("options", "form", "kind"),
    pairwise(LAYERS, ["padded", "batch first", "packed"], [torch.float64, torch.complex128]),
    ids=str,
)
def test_equals_loops_over_each_sequence(kernels, kind, form, options):
    rnn = drawn(2, batch_first=form == "batch first", dtype=kind, **options)
    own, low = single(rnn, kernels)
    x = 0.1 * torch.randn(7, 4, 3, dtype=kind)
    hx = 0.1 * torch.randn(2 * (1 + rnn.bidirectional), 4, 5, dtype=kind)
    lengths, resets = LENGTHS if form == "packed" else [7] * 4, torch.rand(7, 4) < 0.3
    exact = [t.requires_grad_() for t in (x, hx)]
    expected, expected_last = by_loops(rnn, x, hx, lengths, resets)
    loss(expected, expected_last).backward()

    ours = [t.detach().to(kernels.device, low).requires_grad_() for t in exact]
    given = [ours[0], resets.to(kernels.device)]
    if form == "packed":
        given = [pack(t, lengths) for t in given]
    elif form == "batch first":
        given = [t.transpose(0, 1) for t in given]
    with kernels.backend():
        output, last = own(given[0], ours[1], resets=given[1])
        if isinstance(output, PackedSequence):
            sequences = unpacked(output, lengths)
        else:
            sequences = output.unbind(0 if form == "batch first" else 1)
        loss([s.cpu() for s in sequences], last.cpu()).backward()
    for mine, other in zip([*sequences, last], [*expected, expected_last], strict=True):
        close(mine, other.detach())
    for mine, other in zip([*ours, *own.parameters()], [*exact, *rnn.parameters()], strict=True):
        close(dense(mine.grad), dense(other.grad))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"sketch_rank": 2}], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_launches_do_not_grow_with_time(kernels, launches, options, packed):
    rnn = UnitaryRNN(3, 5, **options, device=kernels.device)
    counts = []
    for steps in (4, 16):
        launches.clear()
        x = torch.randn(steps, 2, 3, device=kernels.device)
        resets = torch.rand(steps, 2, device=kernels.device) < 0.3
        if packed:
            x, resets = (pack(t, [steps, 3]) for t in (x, resets))
        _, last = rnn(x, resets=resets)
        last.square().sum().backward()
        counts.append([name for name, _ in launches])
    assert counts[0] == counts[1]
    directions = 1 + rnn.bidirectional
    assert counts[0].count("recurrence") == counts[0].count("recurrence_backward") == directions


def test_a_state_that_is_carried_on_is_cut_where_the_next_part_begins_anew(kernels):
    """As rollouts of a fixed length are trained on: no gradient into the part before."""
    rnn = UnitaryRNN(3, 5).to(kernels.device)
    x, resets = torch.randn(3, 2, 3, device=kernels.device), torch.zeros(3, 2, dtype=torch.bool)
    resets[0, 1] = True
    with kernels.backend():
        hx = torch.randn(1, 2, 5, device=kernels.device, requires_grad=True)
        output, _ = rnn(x, hx, resets=resets.to(kernels.device))
        (by_hx,) = torch.autograd.grad(output.sum(), hx)
        with projunn.backend("torch"):
            alone, _ = copy.deepcopy(rnn)(x[:, 1:])
    torch.testing.assert_close(output[:, 1:], alone, atol=1e-6, rtol=1e-5)
    assert torch.count_nonzero(by_hx[:, 1]) == 0
    assert torch.count_nonzero(by_hx[:, 0]) > 0
