"""Recurrent layers on what people feed to them: packed sequences, both directions, resets, chunks."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import projunn
from projunn.nn import UnitaryRNN
from projunn.optim import SGD
from tests.nn.sequences import by_loops, dense, loss, pack, unpacked

NONE = torch.zeros(7, 4, dtype=torch.bool)


def drawn(*arguments, **options):
    """A layer of random parameters whose states stay away from the poles of the complex tanh."""
    rnn = UnitaryRNN(3, 5, *arguments, **options)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if "weight_hh" not in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return rnn


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", ["padded", "batch first", "unbatched", "packed", "packed by length"])
@pytest.mark.parametrize("with_state", [False, True])
def test_equals_torchs_rnn(nonlinearity, layers, bidirectional, form, with_state):
    options = {"batch_first": form == "batch first", "bidirectional": bidirectional}
    theirs = nn.RNN(3, 5, layers, nonlinearity, dtype=torch.float64, **options)
    ours = UnitaryRNN(3, 5, layers, nonlinearity, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "weight_hh" in name:
                parameter.copy_(projunn.init.haar_(torch.empty(5, 5)))
    ours.load_state_dict(theirs.state_dict())  # the two biases become one
    x = torch.randn((7, 3) if form == "unbatched" else (7, 4, 3), dtype=torch.float64)
    x.requires_grad_()
    batch = {"unbatched": (), "batch first": (7,)}.get(form, (4,))
    hx = torch.randn(layers * (1 + bidirectional), *batch, 5, dtype=torch.float64).requires_grad_()
    found = []
    for rnn in (ours, theirs):
        given = x
        if form.startswith("packed"):
            by_length = form == "packed by length"
            lengths = [7, 5, 5, 2] if by_length else [3, 7, 1, 7]
            given = pack_padded_sequence(x, lengths, enforce_sorted=by_length)
        output, h_n = rnn(given, hx if with_state else None)
        if isinstance(output, PackedSequence):
            torch.testing.assert_close(output.batch_sizes, given.batch_sizes)
            output = output.data
        wanted = [x, *(getattr(rnn, name) for name, _ in ours.named_parameters())]
        wanted += [hx] if with_state else []
        found.append((output, h_n, *torch.autograd.grad(loss([output], h_n), wanted)))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", [{}, {"sketch_rank": 5}, {"checkpoint_every": 3}], ids=str)
def test_equals_loops_over_each_sequence(kind, nonlinearity, bidirectional, packed, options):
    rnn = drawn(2, nonlinearity, bidirectional=bidirectional, dtype=kind, **options)
    x = (0.1 * torch.randn(7, 4, 3, dtype=kind)).requires_grad_()
    hx = (0.1 * torch.randn(2 * (1 + bidirectional), 4, 5, dtype=kind)).requires_grad_()
    lengths, resets = [4, 7, 1, 4] if packed else [7] * 4, torch.rand(7, 4) < 0.3
    resets[0, 0] = False
    expected, expected_last = by_loops(rnn, x, hx, lengths, resets)
    wanted = [x, hx, *rnn.parameters()]
    gradients = torch.autograd.grad(loss(expected, expected_last), wanted)
    if packed:
        output, last = rnn(pack(x, lengths), hx, resets=pack(resets, lengths))
        output = unpacked(output, lengths)
    else:
        output, last = rnn(x, hx, resets=resets)
        output = output.unbind(1)
    for own, other in zip(output, expected, strict=True):
        torch.testing.assert_close(own, other)
    torch.testing.assert_close(last, expected_last)
    loss(output, last).backward()
    for tensor, gradient in zip(wanted, gradients, strict=True):
        torch.testing.assert_close(dense(tensor.grad), gradient, atol=1e-8, rtol=1e-6)
    if rnn.sketch_rank:
        assert all(p.grad.rank == 5 for p in projunn.unitary_parameters(rnn))


@pytest.mark.parametrize("sizes", [[300] * 5 + [211] * 2 + [3], [40] * 30 + [17]])
@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_packed_sequences_of_more_rows_than_a_panel(kind, sizes):
    """67 units are padded to full vectors, and 512 rows end a panel of the time loop."""
    rnn = UnitaryRNN(3, 67, dtype=kind, sketch_rank=67)
    lengths = [sum(size > b for size in sizes) for b in range(sizes[0])]
    x = torch.randn(len(sizes), sizes[0], 3, dtype=torch.float64)
    resets = torch.rand(len(sizes), sizes[0]) < 0.1
    output, last = rnn(pack(x, lengths), resets=pack(resets, lengths))
    loss([output.data], last).backward()
    gradients = [dense(p.grad) for p in rnn.parameters()]
    rnn.zero_grad()
    padded, _ = rnn(x, resets=resets)
    rows = pack(padded, lengths).data
    ends = padded[[length - 1 for length in lengths], range(len(lengths))].unsqueeze(0)
    torch.testing.assert_close(output.data, rows)
    torch.testing.assert_close(last, ends)
    loss([rows], ends).backward()
    for own, parameter in zip(gradients, rnn.parameters(), strict=True):
        torch.testing.assert_close(own, dense(parameter.grad), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_nothing_crosses_a_reset_or_enters_from_the_padding(bidirectional):
    rnn = drawn(2, bidirectional=bidirectional)
    x, resets = torch.randn(7, 4, 3), NONE.clone()
    resets[3] = True
    x[:3] = torch.nan  # of the sequences that end there
    output, last = rnn(x, resets=resets)
    torch.testing.assert_close(output[3:], rnn(x[3:])[0])
    lengths = [4, 7, 1, 4]
    padded = torch.randn(7, 4, 3)
    for b, length in enumerate(lengths):
        padded[length:, b] = torch.nan
    output, last = rnn(pack_padded_sequence(padded, lengths, enforce_sorted=False))
    assert output.data.isfinite().all()
    assert last.isfinite().all()


def test_a_reset_takes_the_gradient_too():
    rnn = drawn(nonlinearity="identity")
    x, resets = torch.randn(7, 4, 3, requires_grad=True), NONE.clone()
    resets[3, 1] = True
    rnn(x, resets=resets)[1].sum().backward()
    assert torch.count_nonzero(x.grad[:3, 1]) == 0
    assert torch.count_nonzero(x.grad[:, 0]) == x.grad[:, 0].numel()


def test_a_sequence_may_be_fed_in_parts():
    """As truncated backpropagation does: `h_n` shares its memory with no copy of it."""
    rnn, x = drawn(2), torch.randn(7, 4, 3)
    expected, last = rnn(x)
    h, parts = None, []
    for part in x.split(3):
        output, h = rnn(part, h)
        h = h.detach()
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts), expected)
    torch.testing.assert_close(h, last)


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}, {"sketch_rank": 2}])
def test_recomputed_states_give_the_gradients_of_kept_ones(options):
    kept = UnitaryRNN(3, 5, dtype=torch.float64, **options)
    x = torch.randn(30, 4, 3, dtype=torch.float64)
    for every in (1, 7, 40, "sqrt"):
        other = UnitaryRNN(3, 5, dtype=torch.float64, checkpoint_every=every, **options)
        other.load_state_dict(kept.state_dict())
        found = []
        for rnn, outputs in ((kept, True), (other, True), (other, False)):
            rnn.zero_grad()
            output, last = rnn(x, outputs=outputs)
            assert (output is not None) == outputs
            loss([last], last).backward()
            found.append([last, *(dense(p.grad) for p in rnn.parameters())])
        for expected, *others in zip(*found, strict=True):
            for own in others:
                torch.testing.assert_close(own, expected)
    if kept.sketch_rank:
        assert other.weight_hh_l0.grad.rank == 2


def saved_bytes(rnn, x):
    """What a forward keeps for its backward, beside the input and the parameters."""
    given = {t.untyped_storage().data_ptr() for t in (x, *rnn.parameters())}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = rnn(x, outputs=False)
    assert result[0] is None
    return sum(kept.values())


def test_a_long_sequence_keeps_the_root_of_its_states():
    state = 4 * 6 * 4
    x = torch.randn(10_000, 4, 3)
    assert saved_bytes(UnitaryRNN(3, 6, 2), x) > 2 * 10_000 * state
    rnn = UnitaryRNN(3, 6, 2, checkpoint_every="sqrt")
    assert saved_bytes(rnn, x) < 4 * 100 * state


def test_recomputing_runs_with_the_parameters_and_the_dropout_of_the_forward():
    rnn = drawn(2, "tanh", dropout=0.5, checkpoint_every=3, dtype=torch.float64)
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    others = {name: p.detach().clone().requires_grad_() for name, p in rnn.named_parameters()}
    torch.manual_seed(1)
    torch.func.functional_call(rnn, others, (x,))[1].sum().backward()
    assert all(p.grad is None for p in rnn.parameters())
    for name in ("weight_ih_l0", "weight_hh_l1"):
        step, values = 1e-4 * torch.randn_like(others[name]), []
        for sign in (1, -1):
            moved = {n: p.detach() + (sign * step if n == name else 0) for n, p in others.items()}
            torch.manual_seed(1)
            values.append(torch.func.functional_call(rnn, moved, (x,))[1].sum().item())
        slope = (others[name].grad * step).sum().item()
        assert (values[0] - values[1]) / 2 == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_training_keeps_all_weights_unitary():
    rnn = UnitaryRNN(3, 8, 2, bidirectional=True, checkpoint_every=4, sketch_rank=2)
    optimizer = SGD(rnn.parameters(), lr=0.1)
    packed = pack_sequence([torch.randn(n, 3) for n in (3, 9, 5)], enforce_sorted=False)
    for _ in range(20):
        optimizer.zero_grad()
        rnn(packed)[1].square().mean().backward()
        optimizer.step()
    assert len(projunn.unitary_parameters(rnn)) == 4
    assert all(projunn.unitarity_defect(p) < 1e-5 for p in projunn.unitary_parameters(rnn))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{"bidirectional": True}, {"checkpoint_every": 3, "sketch_rank": 5}])
def test_states_are_in_single_precision_under_autocast(half, options):
    rnn, x = drawn(2, "tanh", **options), torch.randn(7, 4, 3)
    expected = rnn(x)[0]
    with torch.autocast("cpu", half):
        hx = torch.zeros(len(rnn._suffixes), 4, 5, dtype=half)
        for output, h_n in (rnn(x), rnn(x.to(half), hx)):
            assert output.dtype == h_n.dtype == torch.float32
            torch.testing.assert_close(output, expected, atol=0.02, rtol=0.02)
        assert rnn(pack_sequence([x[:, 0].to(half)]))[0].data.dtype == torch.float32
    output.sum().backward()
    assert rnn.weight_hh_l0.grad.dtype == torch.float32


def test_copies_and_listings():
    rnn = UnitaryRNN(3, 5, 2, bidirectional=True, checkpoint_every="sqrt", dtype=torch.complex64)
    x = torch.randn(7, 4, 3)
    for copied in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        torch.testing.assert_close(copied(x), rnn(x))
    names = [name for name, _ in nn.RNN(3, 5, 2, bidirectional=True).named_parameters()]
    assert {n for n, _ in rnn.named_parameters() if "modrelu" not in n} == {
        name for name in names if "bias_hh" not in name
    }
    assert [len(weights) for weights in rnn.all_weights] == [4] * 4
    assert rnn.all_weights[3][1] is rnn.weight_hh_l1_reverse
    assert rnn.flatten_parameters() is None
    assert "bidirectional=True, checkpoint_every=sqrt" in repr(rnn)


def of_parameters(rnn, x, hx, packed):
    """Outputs of the layer as a function of input, state and parameters, resets in between."""
    mask, names = NONE[:3, :2].clone(), [name for name, _ in rnn.named_parameters()]
    mask[1, 1] = True

    def function(x, hx, *values):
        given = (pack(x, [2, 3]), pack(mask, [2, 3])) if packed else (x, mask)
        named = dict(zip(names, values, strict=True))
        output, last = torch.func.functional_call(rnn, named, (given[0], hx), {"resets": given[1]})
        return output.data if packed else output, last

    return function, (x, hx, *(p.detach().clone().requires_grad_() for p in rnn.parameters()))


@pytest.mark.parametrize(
    ("kind", "options", "packed"),
    [
        (torch.float64, {"nonlinearity": "tanh", "bidirectional": True}, False),
        (torch.complex128, {"nonlinearity": "modrelu"}, True),
        (torch.float64, {"nonlinearity": "tanh", "num_layers": 2, "checkpoint_every": 2}, True),
        (torch.float64, {"nonlinearity": "tanh", "checkpoint_every": 2, "sketch_rank": 1}, False),
    ],
    ids=str,
)
def test_second_derivatives_and_forward_mode(kind, options, packed):
    rnn = UnitaryRNN(1, 2, dtype=kind, **options)
    x = (0.3 * torch.randn(3, 2, 1, dtype=kind)).requires_grad_()
    hx = (0.3 * torch.randn(len(rnn._suffixes), 2, 2, dtype=kind)).requires_grad_()
    function, arguments = of_parameters(rnn, x, hx, packed)
    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_gradients_of_each_example_by_vmap():
    rnn, resets = drawn(2, bidirectional=True, checkpoint_every=3, sketch_rank=2), torch.rand(7, 4) < 0.3
    x, parameters = torch.randn(7, 4, 3), dict(rnn.named_parameters())

    def of_one(parameters, x, resets):
        masks = {"resets": resets.unsqueeze(1)}
        return torch.func.functional_call(rnn, parameters, (x.unsqueeze(1),), masks)[0].square().sum()

    gradient = torch.func.grad(of_one)
    found = torch.func.vmap(gradient, in_dims=(None, 1, 1))(parameters, x, resets)
    for i in range(4):
        for name, expected in gradient(parameters, x[:, i], resets[:, i]).items():
            torch.testing.assert_close(found[name][i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True, "dtype": torch.complex64},
        {"num_layers": 2, "checkpoint_every": "sqrt", "sketch_rank": 2},
    ],
    ids=str,
)
def test_compiles_as_one_graph(options):
    torch._dynamo.reset()
    rnn, x, resets = drawn(**options), torch.randn(9, 4, 3), torch.rand(9, 4) < 0.3

    def run(x):
        output, last = rnn(x, resets=resets)
        return torch.view_as_real(output + 0j), torch.view_as_real(last + 0j)

    found = []
    for function in (run, torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")):
        rnn.zero_grad()
        results = function(x)
        loss([results[0]], results[1]).backward()
        found.append([*results, *(dense(p.grad) for p in rnn.parameters())])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_an_exported_layer_takes_any_batch_and_length(strict):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = drawn(2, bidirectional=True, checkpoint_every="sqrt")

        def forward(self, x, resets):
            return self.rnn(x, resets=resets)

    model, sizes = Masked(), {0: torch.export.Dim("time", min=2), 1: torch.export.Dim("batch")}
    example = torch.randn(9, 4, 3), torch.rand(9, 4) < 0.3
    program = torch.export.export(model, example, dynamic_shapes=(sizes, sizes), strict=strict)
    given = torch.randn(5, 2, 3), torch.rand(5, 2) < 0.3
    torch.testing.assert_close(program.module()(*given), model(*given))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: UnitaryRNN(3, 4, "tanh"), ValueError, "num_layers: got 'tanh'"),
        (lambda: UnitaryRNN(3, 4, bidirectional=2), TypeError, "bidirectional: got 2"),
        (lambda: UnitaryRNN(3, 4, proj_size=2), ValueError, "proj_size: got 2, wanted 0"),
        (lambda: UnitaryRNN(3, 4, checkpoint_every=0), ValueError, 'checkpoint_every: got 0.*"sqrt"'),
        (
            lambda: UnitaryRNN(3, 4)(torch.ones(5, 2, 3), resets=torch.ones(2, 5, dtype=torch.bool)),
            ValueError,
            r"resets: got shape \(2, 5\) and torch.bool, wanted \(5, 2\)",
        ),
        (
            lambda: UnitaryRNN(3, 4)(torch.ones(5, 2, 3), resets=torch.ones(5, 2)),
            ValueError,
            "resets: .* torch.float32, wanted",
        ),
        (
            lambda: UnitaryRNN(3, 4)(
                pack_sequence([torch.ones(5, 3)]), resets=torch.ones(5, 1, dtype=torch.bool)
            ),
            ValueError,
            "resets: got .* wanted a PackedSequence",
        ),
        (
            lambda: UnitaryRNN(3, 4)(pack_sequence([torch.ones(5, 2)])),
            ValueError,
            r"input: got a PackedSequence of shape \(5, 2\), wanted \(5, 3\)",
        ),
        (
            lambda: UnitaryRNN(3, 4)(pack_sequence([torch.ones(5, 3)]), torch.ones(1, 2, 4)),
            ValueError,
            r"hx: got shape \(1, 2, 4\), wanted \(1, 1, 4\)",
        ),
        (
            lambda: UnitaryRNN(3, 4)(pack_sequence([torch.ones(5, 3).double()])),
            TypeError,
            "input: got torch.float64",
        ),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_dropout_without_a_layer_to_act_on_is_said():
    with pytest.warns(UserWarning, match="dropout: got 0.5 with num_layers=1"):
        UnitaryRNN(3, 4, dropout=0.5)
