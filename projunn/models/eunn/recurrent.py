"""A recurrent network whose hidden-to-hidden matrix is made of rotations."""

import torch
from torch import Tensor, nn

from projunn.arguments import check_numbers, check_strided, flag, one_of, positive
from projunn.models.eunn.layer import Angles
from projunn.models.eunn.rotations import Rotations
from projunn_kernels import NONLINEARITIES, apply_nonlinearity


class EURNN(nn.Module):
    """``h_t = f(W_ih x_t + b_ih + U h_{t-1})`` with U as in `EUNNLinear`: called like `UnitaryRNN`.

    The backward keeps the states only, and computes what lies between the layers of rotations anew.
    Source: Jing et al., ICML 2017, section 3.3.

    Args:
        input_size, hidden_size: of x and of h.
        depth, pattern: as in `EUNNLinear`.
        nonlinearity, batch_first, device, dtype: as in `projunn.nn.UnitaryRNN`.

    Shape:
        ``input`` (T, batch, input_size), real.  Returns all states (T, batch, n) and the last one
        (1, batch, n), of the layer's dtype.  h_0 is zero.

    Raises:
        ValueError: a size or option that does not fit, or input of another shape.
        TypeError: another dtype.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        depth: int | None = None,
        pattern: str = "neighbours",
        nonlinearity: str = "modrelu",
        batch_first: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = positive("input_size", input_size)
        self.hidden_size = positive("hidden_size", hidden_size)
        self.nonlinearity = one_of("nonlinearity", nonlinearity, NONLINEARITIES)
        self.batch_first = flag("batch_first", batch_first)
        self.rotations = Angles(hidden_size, depth, pattern, device, dtype)
        self.is_complex, real = self.rotations.is_complex, self.rotations.angles.dtype
        if self.is_complex and nonlinearity == "relu":
            raise ValueError(
                'nonlinearity: "relu" has no meaning for complex numbers; wanted "modrelu", "tanh" or'
                ' "identity"'
            )
        parts = 2 if self.is_complex else 1
        self.enter = nn.Linear(input_size, parts * hidden_size, device=device, dtype=real)
        self.modrelu_bias = (
            nn.Parameter(torch.empty(hidden_size, device=device, dtype=real))
            if nonlinearity == "modrelu"
            else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew: angles uniform, the rest as in `projunn.nn.UnitaryRNN`."""
        self.rotations.reset_parameters()
        parts = 2 if self.is_complex else 1
        bound = (6 / parts / (self.hidden_size + self.input_size)) ** 0.5
        nn.init.uniform_(self.enter.weight, -bound, bound)
        nn.init.zeros_(self.enter.bias)
        if self.modrelu_bias is not None:
            nn.init.uniform_(self.modrelu_bias, -0.01, 0.01)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        check_numbers("input", input, self.enter.weight, False)
        check_strided("input", input)
        if input.ndim != 3 or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input: got shape {tuple(input.shape)}, wanted (T, batch, {self.input_size})"
            )
        entered = self.enter(input.transpose(0, 1) if self.batch_first else input)
        if self.is_complex:  # of a unit, its real and imaginary part
            entered = torch.view_as_complex(entered.unflatten(-1, (-1, 2)).contiguous())
        coefficients = self.rotations.coefficients()
        states: Tensor = _TimeLoop.apply(
            entered, coefficients, self.modrelu_bias, self.nonlinearity, self.rotations.pattern
        )
        last = states[-1:]
        return (states.transpose(0, 1) if self.batch_first else states), last

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity!r}"


class _TimeLoop(torch.autograd.Function):
    """All states (T, batch, n), from the projected inputs (T, batch, n) and h_0 = 0."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        entered: Tensor,
        coefficients: Tensor,
        bias: Tensor | None,
        nonlinearity: str,
        pattern: str,
    ) -> Tensor:
        rotations = Rotations(pattern, coefficients)
        states = torch.empty_like(entered)
        h = None
        for t, u in enumerate(entered.unbind()):
            z = u if h is None else rotations.product(h).add_(u)
            h = apply_nonlinearity(z, bias, nonlinearity)
            states[t] = h
        ctx.save_for_backward(states, coefficients, bias)
        ctx.kind = nonlinearity, pattern
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        states, coefficients, bias = ctx.saved_tensors
        nonlinearity, pattern = ctx.kind
        rotations = Rotations(pattern, coefficients)
        of_inputs = torch.empty_like(states)
        sums = torch.zeros_like(coefficients)
        of_bias = None if bias is None else torch.zeros_like(bias)
        length = rotations.rows_at_once(max(1, states[:1].numel()))
        carry = torch.zeros_like(states[:1]).squeeze(0)
        for end in range(len(states), 0, -length):
            begin = max(0, end - length)
            between = []
            for t in reversed(range(begin, end)):
                g = _before_activation(carry + grad[t], states[t], bias, nonlinearity, of_bias)
                of_inputs[t] = g
                if t:
                    carry, found = rotations.back(g)
                    between.append(found)
            first = max(begin, 1)
            if between:
                of_layers = [torch.stack(layer[::-1]) for layer in zip(*between, strict=True)]
                sums += rotations.coefficient_gradients(states[first - 1 : end - 1], of_layers)
        return of_inputs, sums, of_bias, None, None


def _before_activation(
    g: Tensor, h: Tensor, bias: Tensor | None, nonlinearity: str, of_bias: Tensor | None
) -> Tensor:
    """The gradient of z where h = f(z), from that of h; that of b is added to ``of_bias``.

    modReLU is z + b u, u = z / |z|, where h is not 0.  There dz counts once, and b / |z| times its part
    that turns u:  g + b / |z| (g - u Re(conj(u) g)).  Of reals nothing turns.
    """
    if nonlinearity == "identity":
        return g
    if nonlinearity == "relu":
        return g * (h > 0)
    if nonlinearity == "tanh":
        return g * (1 - h.conj().square())
    assert bias is not None
    assert of_bias is not None
    u = h.sgn()
    if not h.is_complex():
        of_bias += (g * u).sum(0)
        return g * u.abs()
    along = (u.conj() * g).real
    of_bias += along.sum(0)
    size = h.abs()
    turned = torch.where(size > 0, bias / (size - bias), 0.0)
    return g * (size > 0) + turned * (g - u * along)
