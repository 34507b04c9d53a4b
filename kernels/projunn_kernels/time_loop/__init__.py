"""The time loop of a unitary RNN as one operation, forward and backward.

    h_t = f(U u_t + c + h_{t-1} W^T),   t = 1..T

u (T, batch, m), U (n, m), c (n,), W (n, n), and f one of ``NONLINEARITIES``:

    identity   z                            relu   max(z, 0)
    tanh       tanh z                       modrelu   z / |z| max(|z| + b, 0)   (0 at z = 0)

Without U, the input is (T, batch, n) and stands for U u_t + c.  Complex numbers are stored as pairs of
reals, with a trailing axis of size 2.  But u, U and c are real where U is given: for complex states U
then has 2 n rows, which alternately give the real and the imaginary part of a unit.

Packed sequences have tensors of one axis less: ``batch_sizes`` says how many sequences of the batch,
longest first, each time step has, and the rows of all time steps follow one another, as in
`torch.nn.utils.rnn.PackedSequence`.  Where ``resets`` is True, h_{t-1} is zero in the place of what it
was, so that several sequences may follow one another in one row, and no gradient passes from one to the
other.

The last state is a separate output, for losses that need no other.  Only the states are kept for the
backward, because f' can be computed from f(z).  The loop is one opaque operator, so that it costs the
same to compile for any T.  On a GPU it is one launch in each direction, with GEMMs before and after it,
and takes packed sequences padded (`padded`); elsewhere it is a loop of GEMMs (`eager`).

modReLU: Arjovsky, Shah, Bengio, ICML 2016, equation 8.
"""

from typing import Any

from torch import Tensor

from projunn_kernels import private
from projunn_kernels.operation import Derivative, Operation
from projunn_kernels.time_loop import eager, plain
from projunn_kernels.time_loop.arguments import (
    Recurrence,
    RecurrenceBackward,
    backward_flops,
    flops,
    states_shape,
)
from projunn_kernels.time_loop.plain import nonlinearity_of_parts
from projunn_kernels.time_loop.reference import NONLINEARITIES, apply_nonlinearity
from projunn_kernels.time_loop.tiles import RECURRENCE, RECURRENCE_BACKWARD

__all__ = [
    "NONLINEARITIES",
    "RecurrenceBackward",
    "apply_nonlinearity",
    "nonlinearity_of_parts",
    "recurrence",
    "recurrence_backward",
]


def recurrence(
    inputs: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    input_weight: Tensor | None = None,
    input_bias: Tensor | None = None,
    *,
    batch_sizes: list[int] | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``h_t = f(U u_t + c + h_{t-1} W^T)`` for t = 1..T; differentiable.

    Returns all states (T, batch, n) and a copy of the last (batch, n) of each sequence.

    Args:
        inputs: u, (T, batch, m), or (T, batch, n) without ``input_weight``.
        initial: h_0, (batch, n).
        weight: W, (n, n).  If it is (n, n, 2), the states, h_0, and u without ``input_weight``, are
            complex numbers stored as pairs of reals, with a trailing axis of size 2.
        bias: b of modReLU, (n,), real; None for any other f.
        nonlinearity: f, one of `NONLINEARITIES`.
        input_weight, input_bias: U (n, m) and c (n,), or None; 2 n rows for complex states.

        batch_sizes: of packed sequences, the rows of each time step, which never grow; else None.  With
            it u and the states are (sum(batch_sizes), m) and (sum(batch_sizes), n).
        resets: booleans of the shape (T, batch), or (sum(batch_sizes),), or None: where one is True, the
            state before that time step is replaced by zero.

    Raises:
        ValueError: a ``nonlinearity`` that is none of `NONLINEARITIES`.
    """
    if nonlinearity not in NONLINEARITIES:
        wanted = ", ".join(NONLINEARITIES)
        raise ValueError(f"nonlinearity: got {nonlinearity!r}, wanted one of {wanted}")
    more: dict[str, Any] = {}  # each argument of an operator costs time, also one that is None
    if batch_sizes is not None or resets is not None:
        more = {"batch_sizes": batch_sizes, "resets": resets}
    states, last = _recurrence(
        inputs=inputs,
        initial=initial,
        weight=weight,
        bias=bias,
        nonlinearity=nonlinearity,
        input_weight=input_weight,
        input_bias=input_bias,
        **more,
    )
    return states, last


def recurrence_backward(call: RecurrenceBackward) -> list[Tensor]:
    """The gradients of `recurrence`, from the gradients of its two outputs, either of which may be None.

    Returns a list: the gradients of u, h_0, b, U and c, each an empty tensor if there is none; then the
    gradient of W or, if a basis R is given, its factors X and Y as `projunn_kernels.sketch` makes them.
    If the gradient of W is not wanted, the list ends with that of c.
    """
    if private.is_batched(call.grad) or private.is_batched(call.grad_last):
        return plain.recurrence_backward(call)
    gradients: list[Tensor] = _recurrence_backward(call)
    return gradients


def _fake_states(call: Recurrence) -> tuple[Tensor, Tensor]:
    return call.inputs.new_empty(states_shape(call)), call.inputs.new_empty(call.initial.shape)


def _fake_gradients(call: RecurrenceBackward) -> list[Tensor]:
    def like(tensor: Tensor | None, wanted: bool = True) -> Tensor:
        if tensor is None or not wanted:
            return call.states.new_empty(0)
        return tensor.new_empty(tensor.shape)

    projects = call.input_weight is not None
    rows = call.input_weight.shape[0] if call.input_weight is not None else 0
    factors = []
    if call.wants_weight:
        factors = [like(call.weight)] if call.basis is None else [like(call.basis), like(call.basis)]
    return [
        like(call.inputs, call.wants_inputs or not projects),
        like(call.initial),
        like(call.bias),
        like(call.input_weight),
        call.states.new_empty(rows if call.wants_input_bias else 0),
        *factors,
    ]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    u, initial, weight, bias, ctx.nonlinearity, input_weight, _, ctx.batch_sizes, resets = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(u, output[0], initial, weight, bias, input_weight, resets)


def _backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
    u, states, initial, weight, bias, input_weight, resets = ctx.saved_tensors
    needs = ctx.needs_input_grad  # without those of trailing arguments that have their defaults
    by_u, by_initial, by_bias, by_input_weight, by_input_bias, *by_weight = recurrence_backward(
        RecurrenceBackward(
            grad=grad,
            grad_last=grad_last,
            inputs=u,
            states=states,
            initial=initial,
            weight=weight,
            bias=bias,
            nonlinearity=ctx.nonlinearity,
            input_weight=input_weight,
            wants_inputs=needs[0],
            wants_input_bias=needs[6],
            wants_weight=needs[2],
            batch_sizes=ctx.batch_sizes,
            resets=resets,
        )
    )
    found = by_weight[0] if by_weight else None
    grads = by_u, by_initial, found, by_bias, None, by_input_weight, by_input_bias, None, None
    return tuple(g if need else None for g, need in zip(grads, needs, strict=False))


_recurrence = Operation(
    name="recurrence",
    eager=eager.recurrence,
    launches="projunn_kernels.time_loop.padded:recurrence",
    fake=_fake_states,
    on="inputs",
    kernels=(RECURRENCE,),
    bundle=Recurrence,
    derivative=Derivative(_setup_context, _backward),
    plain=plain.recurrence,
    flops=flops,
    tf32=True,
    autocast=True,
)
_recurrence_backward = Operation(
    name="recurrence_backward",
    eager=eager.recurrence_backward,
    launches="projunn_kernels.time_loop.padded:recurrence_backward",
    fake=_fake_gradients,
    on="states",
    kernels=(RECURRENCE_BACKWARD,),
    bundle=RecurrenceBackward,
    plain=plain.recurrence_backward,
    flops=backward_flops,
    tf32=True,
)
