"""``torch.ops.projunn.*`` called directly: right under every transform, or refused by name.

PyTorch's custom operators drop tangents without a word.  Every operator of ours is tried, in float64.
"""

import pytest
import torch
from torch.autograd import forward_ad

from projunn.init import haar_
from projunn_kernels import fourier_transform, frequencies
from projunn_kernels.operation import OPERATIONS
from projunn_kernels.time_loop import eager as time_loop
from projunn_kernels.time_loop import plain as plain_time_loop
from projunn_kernels.time_loop.arguments import Recurrence

SIZE = [4, 3]
GRID = frequencies(tuple(SIZE), True)


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def unitary(n=4):
    return haar_(torch.empty(n, n, dtype=torch.float64))


def counter():
    return torch.zeros((), dtype=torch.int64)


def spectrum(channels):
    return fourier_transform(draw(2, channels, *SIZE), SIZE, True)


def matrices():
    return draw(GRID.paired, 3, 2, 2), draw(len(GRID.own), 3, 2)


def bases():
    return draw(GRID.paired, 3, 1, 2), draw(len(GRID.own), 3, 1)


def loop():
    """u, h_0, W, b, f, U, c of a loop of 5 steps, and its states."""
    arguments = draw(5, 2, 3), draw(2, 4), unitary(), None, "tanh", draw(4, 3), draw(4)
    return arguments, torch.ops.projunn.recurrence(*arguments)[0]


def loop_backward():
    (u, h, w, b, f, projection, _), states = loop()
    return [draw(5, 2, 4), draw(2, 4), u, states, h, w, b, f, projection, True, True, True, None]


# The arguments of every operator.
ARGUMENTS = {
    "constant": lambda: [draw(3, 4)],
    "factor": lambda: [draw(5, 4), draw(5, 2), None],
    "factored_step_": lambda: [
        [unitary()],
        *([draw(4, 1)] for _ in range(5)),
        [counter()],
        [torch.zeros((), dtype=torch.int64)],
        0.1,
        None,
        "exp",
        False,
    ],
    "followed_step_": lambda: [
        *([value] for value in (unitary(), draw(4, 4), draw(8, 1), draw(8, 1))),
        *([draw(4, 4)], [], []),
        [counter()],
        [torch.zeros((), dtype=torch.int64)],
        [1e9, 0.9, 1.0, 0.0, 1.0, 0.0, 0.9],
        *("momentum", False, 1, [], 0.1, None, "exp", False, "single_pass"),
    ],
    "follow_rule_": lambda: [
        *([draw(4, 4)] for _ in range(2)),
        *([], []),
        [counter()],
        [1e9, 0.9, 1.0, 0.0, 1.0, 0.0, 0.9],
        *("momentum", False, 1, [], False),
    ],
    "fourier_convolution": lambda: [draw(2, 2, *SIZE), *matrices(), draw(3), SIZE, True],
    "fourier_convolution_backward": lambda: [
        draw(2, 3, *SIZE),
        *spectrum(2),
        *matrices(),
        SIZE,
        [True, True, True],
    ],
    "fourier_convolution_sketch": lambda: [
        draw(2, 3, *SIZE),
        list(spectrum(2)),
        *matrices(),
        *bases(),
        SIZE,
        [True, True, True],
    ],
    "fourier_inverse": lambda: [*spectrum(3), draw(3), SIZE, True],
    "fourier_transform": lambda: [draw(2, 3, *SIZE), SIZE, True],
    "fused_step_": lambda: [
        [unitary()],
        [draw(4, 4)],
        [draw(4, 1)],
        [draw(4, 1)],
        [counter()],
        [torch.zeros((), dtype=torch.int64)],
        0.1,
        None,
        "exp",
        False,
        None,
    ],
    "orthonormalize": lambda: [draw(5, 2)],
    "polish_when_due_": lambda: [[unitary()], [counter()], 10, False, []],
    "rank_update_": lambda: [unitary(), draw(4, 2), draw(4, 2), None],
    "recurrence": lambda: list(loop()[0]),
    "recurrence_backward": loop_backward,
    "refresh_basis_": lambda: [draw(4, 1), draw(4, 1), draw(4, 1), torch.ones((), dtype=torch.bool)],
    "retract_": lambda: [unitary(), draw(4, 1), draw(4, 1), "exp", None],
    "retract_pulled_": lambda: [unitary(), draw(4, 1), draw(4, 1), draw(4, 1), "exp", None],
    "seeded_normal": lambda: [draw(3), [2, 4], 7],
    "sketch": lambda: [[draw(6, 4)], [draw(6, 5)], draw(5, 2), False],
    "tangent_factors": lambda: [draw(4, 4), unitary(), draw(4, 1), None],
}
OURS = [
    name
    for name, operation in OPERATIONS.items()
    if getattr(operation.eager, "func", operation.eager).__module__.startswith("projunn_kernels")
]
PLAIN = [name for name in OURS if OPERATIONS[name].plain is not None]
REFUSING = [name for name in OURS if name not in PLAIN]


class Call:
    """An operator as a function of its real tensors, with one real number for a result."""

    def __init__(self, name):
        self.operator = getattr(torch.ops.projunn, name)
        self.arguments = ARGUMENTS[name]()
        flat = [a for group in self.arguments for a in (group if isinstance(group, list) else [group])]
        self.point = tuple(a for a in flat if isinstance(a, torch.Tensor) and a.is_floating_point())
        self.cotangents = None

    def __call__(self, *point):
        given = iter(point)

        def place(value):
            if isinstance(value, list):
                return [place(v) for v in value]
            real = isinstance(value, torch.Tensor) and value.is_floating_point()
            return next(given) if real else value

        result = self.operator(*map(place, self.arguments))
        results = [result] if isinstance(result, torch.Tensor) else list(result or ())
        if self.cotangents is None:
            self.cotangents = [torch.randn_like(r.detach()) for r in results if r.numel()]
        kept = [r for r in results if r.numel()]
        return sum((r * c).sum() for r, c in zip(kept, self.cotangents, strict=True))

    def derivative(self, direction, step=1e-6):
        ahead, back = (
            self(*(p + sign * step * d for p, d in zip(self.point, direction, strict=True)))
            for sign in (1, -1)
        )
        return (ahead - back) / (2 * step)


def test_every_operator_is_tried():
    assert sorted(ARGUMENTS) == sorted(OURS)


@pytest.mark.parametrize("name", PLAIN)
def test_tangents_and_gradients_are_right(name):
    call = Call(name)
    direction = tuple(torch.randn_like(p) for p in call.point)
    value = call(*call.point)
    expected = call.derivative(direction)
    close = {"rtol": 1e-6, "atol": 1e-6}
    primal, tangent = torch.func.jvp(call, call.point, direction)
    torch.testing.assert_close(primal, value)
    torch.testing.assert_close(tangent, expected, **close)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, d) for p, d in zip(call.point, direction, strict=True)]
        found = forward_ad.unpack_dual(call(*duals)).tangent
        torch.testing.assert_close(
            torch.zeros(()) if found is None else found, expected, check_dtype=False, **close
        )
    gradients = torch.func.grad(call, tuple(range(len(direction))))(*call.point)
    total = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    torch.testing.assert_close(total, expected, **close)


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "seeded_normal"])
def test_gradients_of_autograd_are_right_twice(name):
    call = Call(name)
    call(*call.point)
    direction = tuple(torch.randn_like(p) for p in call.point)

    def gradients(*point):
        inputs = [p.detach().clone().requires_grad_() for p in point]
        found = torch.autograd.grad(
            call(*inputs), inputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return inputs, found

    inputs, found = gradients(*call.point)
    slope = sum((g * d).sum() for g, d in zip(found, direction, strict=True))
    torch.testing.assert_close(slope, call.derivative(direction), rtol=1e-6, atol=1e-6)
    if not slope.requires_grad:  # a linear operator of one argument
        return
    twice = torch.autograd.grad(slope, inputs, allow_unused=True, materialize_grads=True)
    curvature = sum((g * d).sum() for g, d in zip(twice, direction, strict=True))
    ahead, back = (
        sum(
            (g * d).sum()
            for g, d in zip(
                gradients(*(p + s * 1e-5 * d for p, d in zip(call.point, direction, strict=True)))[1],
                direction,
                strict=True,
            )
        )
        for s in (1, -1)
    )
    torch.testing.assert_close(curvature, (ahead - back) / 2e-5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "seeded_normal"])
def test_vmap_is_a_loop(name):
    call = Call(name)
    call(*call.point)
    points = [torch.stack([p, p + 0.1, 2 * p]) for p in call.point]
    each = torch.stack([call(*point) for point in zip(*points, strict=True)])
    torch.testing.assert_close(torch.vmap(call)(*points), each)


@pytest.mark.parametrize("name", REFUSING)
def test_what_has_no_derivative_says_so_by_its_name(name):
    call = Call(name)
    number = len(call.point)
    words = pytest.raises(NotImplementedError, match=f"torch.ops.projunn.{name} has no derivative")
    for chosen in range(number):  # of each argument alone

        def function(x, chosen=chosen):
            return call(*(x if i == chosen else p.clone() for i, p in enumerate(call.point)))

        x = call.point[chosen].clone()
        with words:
            torch.func.jvp(function, (x,), (x,))
        with words:
            torch.func.grad(function)(x)
        with forward_ad.dual_level(), words:
            function(forward_ad.make_dual(x, x.clone()))


def test_what_has_no_derivative_runs_on_constants_inside_of_a_transform():
    weight, left, right = unitary(), draw(4, 1), draw(4, 1)
    expected = weight.clone()
    torch.ops.projunn.retract_(expected, left, right, "exp", None)

    def function(x):
        moved = weight.clone()
        torch.ops.projunn.retract_(moved, left, right, "exp", None)
        return (moved @ x).sum()

    x = draw(4)
    torch.testing.assert_close(torch.func.grad(function)(x), expected.sum(0))


@pytest.mark.parametrize("parts", [(), (2,)], ids=["real", "complex"])
@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh", "identity", "relu"])
def test_the_plain_loop_is_the_loop(nonlinearity, parts):
    if parts and nonlinearity == "relu":
        pytest.skip("relu has no meaning for complex numbers")
    rows = 8 if parts else 4
    h, w, b = draw(2, 4, *parts), draw(4, 4, *parts), draw(4) if nonlinearity == "modrelu" else None
    for arguments in (
        (draw(5, 2, 3), h, w, b, nonlinearity, draw(rows, 3), draw(rows)),
        (draw(5, 2, 3), h, w, b, nonlinearity, draw(rows, 3), None),
        (draw(5, 2, 4, *parts), h, w, b, nonlinearity, None, None),
    ):
        call = Recurrence(*arguments)
        found = plain_time_loop.recurrence(call)
        torch.testing.assert_close(found, time_loop.recurrence(call))
