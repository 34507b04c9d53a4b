"""Recurrent layers as loops over the time steps of each sequence, and what they are compared on."""

import torch
from torch.nn.utils.rnn import PackedSequence

from projunn import FactoredTensor
from projunn_kernels import apply_nonlinearity


def pack(padded, lengths):
    """A `PackedSequence` of (T, batch, ...), which torch's own function packs of real numbers only."""
    order = torch.tensor(sorted(range(len(lengths)), key=lambda b: -lengths[b]))
    sizes = [sum(length > t for length in lengths) for t in range(max(lengths))]
    rows = [padded[t, order[:size]] for t, size in enumerate(sizes)]
    order = order.to(padded.device)
    return PackedSequence(torch.cat(rows), torch.tensor(sizes), order, order.argsort())


def unpacked(packed, lengths):
    """The sequences of a `PackedSequence`, in their own order."""
    steps = packed.data.split(packed.batch_sizes.tolist())
    places = range(len(lengths)) if packed.unsorted_indices is None else packed.unsorted_indices.tolist()
    return [
        torch.stack([steps[t][place] for t in range(length)])
        for place, length in zip(places, lengths, strict=True)
    ]


def by_loops(rnn, x, hx, lengths, resets):
    """The states of the last layer, one tensor for each sequence, and the last states of every layer."""
    numbers, directions = rnn._numbers, 1 + rnn.bidirectional
    inputs = [x[:length, b].to(hx.dtype) for b, length in enumerate(lengths)]
    last = []
    for row, suffix in enumerate(rnn._suffixes):
        if row % directions == 0:
            layer_inputs, outputs = inputs, [[] for _ in lengths]
        back, ends = suffix.endswith("_reverse"), []
        for b, length in enumerate(lengths):
            h, states = hx[row, b], [None] * length
            for t in reversed(range(length)) if back else range(length):
                cut = resets[t, b] if not back else t + 1 < length and resets[t + 1, b]
                h = torch.zeros_like(h) if cut else h
                z = numbers(getattr(rnn, f"weight_ih{suffix}")) @ layer_inputs[b][t]
                z = z + numbers(getattr(rnn, f"bias_ih{suffix}"))
                z = z + numbers(getattr(rnn, f"weight_hh{suffix}")) @ h
                offset = getattr(rnn, f"modrelu_bias{suffix}", None)
                h = states[t] = apply_nonlinearity(z, offset, rnn.nonlinearity)
            outputs[b].append(torch.stack(states))
            ends.append(h)
        last.append(torch.stack(ends))
        inputs = [torch.cat(parts, -1) for parts in outputs]
    return inputs, torch.stack(last)


def loss(sequences, h_n):
    """A number that every state has its own share in."""
    every = [*sequences, h_n]
    return sum((s.abs().square() * torch.linspace(0.3, 1, s.shape[-1])).sum() for s in every)


def dense(gradient):
    return gradient.to_dense() if isinstance(gradient, FactoredTensor) else gradient
