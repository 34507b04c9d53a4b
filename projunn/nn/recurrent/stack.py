"""Recurrent layers with a unitary hidden-to-hidden weight, one upon the other."""

import warnings
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from projunn.arguments import check_strided, flag, number, positive, tensor, whole
from projunn.nn.module import sketch_of
from projunn.nn.recurrent.chunks import checked, in_chunks
from projunn.nn.recurrent.layer import RecurrentModule, check_tensors
from projunn.nn.recurrent.sequences import Sequences
from projunn.nn.sketched import sketched_weight
from projunn_kernels import private


class UnitaryRNN(RecurrentModule):
    """``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1})`` with W_hh unitary: called like `torch.nn.RNN`.

    The loop over time is a single operator (`projunn_kernels.recurrence`).  A loss that needs only the
    last state should take it from ``h_n``: for ``output[-1]`` autograd makes a gradient of all states
    and fills it with zeros.

    Args:
        input_size: the number of features of the input.
        hidden_size: n, the number of features of the hidden state.
        num_layers: the number of recurrent layers, each fed by the one before.
        nonlinearity: f: ``"modrelu"`` (`projunn.nn.ModReLU`, with a learned b), ``"relu"`` (real only),
            ``"tanh"`` or ``"identity"``.
        bias: whether to learn b_ih.  The b of modReLU is learned in any case.
        batch_first: whether input and output are (batch, T, features).
        dropout: probability of dropout on the output of each layer but the last.
        bidirectional: whether each layer has a second one beside it that goes from the end of each
            sequence to its beginning.  The states of both are concatenated.
        device: as in ``torch.nn.RNN``.
        dtype: float32, float64, complex64 or complex128; default: PyTorch's default dtype.
        sketch_rank: rank of sketched gradients of W_hh, as in `projunn.nn.UnitaryLinear`.  What is
            sketched is the gradient summed over all time steps.
        checkpoint_every: c, or ``"sqrt"`` for c about sqrt(T), to save memory in training: of the states
            only those of every c-th time step are kept, and the backward computes the others again, c
            time steps at a time.  That costs one more forward.  Memory for (T / c + c) states in each
            layer then takes the place of T, which is least for ``"sqrt"``.  With ``outputs=False`` no
            other tensor grows with T.  Below the last of several bidirectional layers all states are
            kept, because the layer above begins at both ends.
        proj_size: must be 0, as for `torch.nn.RNN`.

    Shape:
        ``input`` is (T, batch, input_size), or (batch, T, input_size) with ``batch_first``, or (T,
        input_size) without batch, or a ``PackedSequence``, sorted or not; complex layers take complex
        input too.  ``hx`` is (D num_layers, batch, n), or (D num_layers, n) without batch, where D is 2
        if ``bidirectional`` and else 1; zeros if not given.  Returns ``output``, the states of the last
        layer, (T, batch, D n) with its axes ordered as those of ``input``, or a ``PackedSequence``; and
        ``h_n`` (D num_layers, batch, n), the last state of each sequence.  Both are complex for a
        complex layer.

        ``resets`` are booleans (T, batch), with their axes ordered as those of ``input``, or a
        ``PackedSequence`` of them if ``input`` is one.  Where one is True, a new sequence begins: the
        state before that time step is zero in the place of what it was.  With ``outputs=False``,
        ``output`` is None.

    Attributes:
        weight_hh_l[k]: W_hh of layer k, a `projunn.UnitaryParameter` (n, n), which
            `projunn.init.henaff_` initialises.
        weight_ih_l[k], bias_ih_l[k], modrelu_bias_l[k]: W_ih (n, input_size, or D n for k > 0), b_ih
            (n,) and the b of modReLU (n,) of layer k.  In complex layers all but the last, which is
            real, have a trailing axis (re, im), and so has W_hh.  The names of those that go from the
            end end in ``_reverse``.

    Raises:
        ValueError: a size, shape or option that does not fit.
        TypeError: ``dtype`` is none of those four, or input of another dtype.
    """

    bidirectional = False  # of modules that were pickled before there was the option
    checkpoint_every: int | str | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "modrelu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sketch_rank: int | None = None,
        checkpoint_every: int | str | None = None,
        proj_size: int = 0,
    ) -> None:
        layers, directions = positive("num_layers", num_layers), 1 + flag("bidirectional", bidirectional)
        dropout = number("dropout", dropout, 0, 1)
        batch_first = flag("batch_first", batch_first)
        checkpoint_every = checked(checkpoint_every)
        if whole("proj_size", proj_size) != 0:
            raise ValueError(f"proj_size: got {proj_size}, wanted 0: the state of an RNN is its output")
        inner = directions * positive("hidden_size", hidden_size)
        ends = ("", "_reverse")[:directions]
        suffixes = {f"_l{i}{end}": inner if i else input_size for i in range(layers) for end in ends}
        super().__init__(
            input_size, hidden_size, nonlinearity, bias, suffixes, device, dtype, sketch_rank
        )
        self._suffixes = list(suffixes)
        self.num_layers = layers
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bool(directions - 1)
        self.checkpoint_every = checkpoint_every
        if dropout and layers == 1:
            warnings.warn(
                f"dropout: got {dropout} with num_layers=1, which has no effect: it acts on the output"
                " of each layer but the last",
                stacklevel=2,
            )

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer, and of each direction, as `torch.nn.RNN` lists them."""
        kinds = "weight_ih", "weight_hh", "bias_ih", "modrelu_bias"
        return [
            [getattr(self, kind + suffix) for kind in kinds if hasattr(self, kind + suffix)]
            for suffix in self._suffixes
        ]

    def flatten_parameters(self) -> None:
        """Does nothing: what `torch.nn.RNN` needs on a GPU, no kernel of ours does."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        resets: Tensor | PackedSequence | None = None,
        outputs: bool = True,
    ) -> tuple[Any, Tensor]:
        if isinstance(input, PackedSequence):
            return self._of_packed(input, hx, resets, outputs)
        check_tensors(input, hx)
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input: got shape {tuple(input.shape)}, wanted (T, batch, {self.input_size}),"
                f" (batch, T, {self.input_size}) with batch_first, or (T, {self.input_size})"
            )
        unbatched = input.ndim == 2
        batch_comes_first = self.batch_first and not unbatched
        x = input.unsqueeze(1) if unbatched else input
        if batch_comes_first:
            x = rearrange(x, "batch time feature -> time batch feature")
        if x.shape[0] == 0:
            raise ValueError(f"input: got shape {tuple(input.shape)}, wanted at least one time step")
        self._check_state(hx, () if unbatched else (x.shape[1],))
        if resets is not None:
            resets = _checked_resets(resets, input.shape[:-1], input.device)
            resets = resets.unsqueeze(1) if unbatched else resets
            resets = resets.mT if batch_comes_first else resets
        initial = hx.unsqueeze(1) if hx is not None and unbatched else hx
        states, h_n = self._layers(x, initial, Sequences(x.shape[0], None, resets), outputs)
        if unbatched:
            return states if states is None else states.squeeze(1), h_n.squeeze(1)
        if batch_comes_first and states is not None:
            states = rearrange(states, "time batch unit -> batch time unit")
        return states, h_n

    def _of_packed(
        self,
        input: PackedSequence,
        hx: Tensor | None,
        resets: Tensor | PackedSequence | None,
        outputs: bool,
    ) -> tuple[PackedSequence | None, Tensor]:
        data, batch_sizes, order, original = input
        check_tensors(data, hx)
        sizes: list[int] = batch_sizes.tolist()
        if data.shape != (sum(sizes), self.input_size):
            raise ValueError(
                f"input: got a PackedSequence of shape {tuple(data.shape)}, wanted"
                f" ({sum(sizes)}, {self.input_size}) as its batch_sizes add up"
            )
        self._check_state(hx, (sizes[0],))
        if resets is not None:
            if not isinstance(resets, PackedSequence) or not resets.batch_sizes.equal(batch_sizes):
                raise ValueError(
                    "resets: got other sequences than those of the input, wanted a PackedSequence of the"
                    " same batch_sizes"
                )
            resets = _checked_resets(resets.data, (len(data),), data.device)
        if hx is not None and order is not None:
            hx = hx.index_select(1, order)
        x, h_n = self._layers(data, hx, Sequences(len(sizes), sizes, resets), outputs)
        if original is not None:
            h_n = h_n.index_select(1, original)
        return None if x is None else PackedSequence(x, batch_sizes, order, original), h_n

    def _check_state(self, hx: Tensor | None, batch: tuple[int, ...]) -> None:
        wanted = (len(self._suffixes), *batch, self.hidden_size)
        if hx is not None and hx.shape != wanted:
            raise ValueError(f"hx: got shape {tuple(hx.shape)}, wanted {wanted}")

    def _layers(
        self, x: Tensor, initial: Tensor | None, sequences: Sequences, outputs: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The output, or None, and the last states, (layers and directions, batch, n)."""
        suffixes = self._suffixes
        starts: list[Tensor | None] = [None] * len(suffixes)
        if initial is not None:
            starts = list(initial.unbind())
        if self.bidirectional:
            return self._both_ways(x, starts, sequences, outputs)
        states, last = self._chain(suffixes, x, starts, sequences, outputs)
        return states, last[0].unsqueeze(0) if len(last) == 1 else torch.stack(last)

    def _both_ways(
        self, states: Tensor, starts: list[Tensor | None], sequences: Sequences, outputs: bool
    ) -> tuple[Tensor | None, Tensor]:
        suffixes, flipped = self._suffixes, sequences.flipped()
        last: list[Tensor] = []
        for i in range(0, len(suffixes), 2):
            x = self._drop(states) if i and self.dropout else states
            wanted = outputs or i + 2 < len(suffixes)
            ahead, h = self._chain(suffixes[i : i + 1], x, starts[i : i + 1], sequences, wanted)
            back, g = self._chain(
                suffixes[i + 1 : i + 2], sequences.flip(x), starts[i + 1 : i + 2], flipped, wanted
            )
            last += [*h, *g]
            if ahead is None or back is None:
                return None, torch.stack(last)
            states = torch.cat([ahead, sequences.flip(back)], -1)
        return states, torch.stack(last)

    def _chain(
        self,
        suffixes: list[str],
        x: Tensor,
        initial: list[Tensor | None],
        sequences: Sequences,
        outputs: bool,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Layers that go the same way, each on the states of the one before."""
        layers = [self._layer(suffix) for suffix in suffixes]

        def run(
            x: Tensor, initial: list[Tensor | None], sequences: Sequences
        ) -> tuple[Tensor, list[Tensor]]:
            last = []
            for i, (layer, start) in enumerate(zip(layers, initial, strict=True)):
                if i and self.dropout:
                    x = self._drop(x)
                x, h = self._run(x, start, layer, sequences)
                last.append(h)
            return x, last

        if self.checkpoint_every is None or private.in_transform_or_export():
            states, last = run(x, initial, sequences)
            return states if outputs else None, last
        for i, layer in enumerate(layers):
            if sketch_of(layer.weight_hh) is not None:
                layers[i] = layer._replace(weight_hh=sketched_weight(layer.weight_hh))
        return in_chunks(
            run,
            x,
            initial,
            sequences,
            every=self.checkpoint_every,
            outputs=outputs,
            random=self.training and self.dropout > 0 and len(suffixes) > 1,
        )

    def _drop(self, x: Tensor) -> Tensor:
        if not x.is_complex():
            return functional.dropout(x, self.dropout, self.training)
        return x * functional.dropout(torch.ones_like(x.real), self.dropout, self.training)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        for name, usual in (
            ("num_layers", 1),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
            ("checkpoint_every", None),
        ):
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)}"
        return text


def _checked_resets(resets: Any, wanted: tuple[int, ...], device: torch.device) -> Tensor:
    check_strided("resets", tensor("resets", resets))
    if resets.dtype is not torch.bool or resets.shape != wanted:
        raise ValueError(
            f"resets: got shape {tuple(resets.shape)} and {resets.dtype}, wanted {tuple(wanted)} and"
            " torch.bool"
        )
    if resets.device != device:
        raise ValueError(f"resets: is on {resets.device}, wanted the layer's device {device}")
    return resets
