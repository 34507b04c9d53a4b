"""What a GPU uses in place of the decompositions of torch.linalg, against these."""

import math

import pytest
import torch

from projunn_kernels import iterations, orthonormalize, rotation, step_basis
from tests.dense import RETRACTIONS, polar, precise, unitary_factor

KINDS = pytest.mark.parametrize("kind", [torch.float64, torch.complex128], ids=str)


def of_condition(condition, size, kind, batch=3):
    """Random matrices whose singular values are spread evenly, on a logarithmic scale, over a range."""
    u, v = (torch.linalg.qr(torch.randn(batch, size, size, dtype=kind))[0] for _ in range(2))
    return (u * torch.logspace(0, -torch.tensor(condition).log10(), size, dtype=torch.float64)) @ v


@KINDS
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [4, 33, 130])
def test_inverse(kind, condition, size):
    x = of_condition(condition, size, kind) * 1e5
    expected = torch.linalg.inv(x)
    error = torch.linalg.matrix_norm(iterations.inverse(x) - expected)
    assert (error < 1e-14 * condition * size * torch.linalg.matrix_norm(expected)).all()


@KINDS
@pytest.mark.parametrize("size", [4, 20, 70])
def test_a_singular_matrix_has_no_inverse(kind, size):
    """Of one with a singular value of rounding size the Cholesky factor may exist, and lack a
    direction.
    """
    x = torch.randn(40, size, size, dtype=kind)
    vector = torch.nn.functional.normalize(torch.randn(40, size, 1, dtype=kind), dim=-2)
    singular = x - (x @ vector) @ vector.mH
    assert iterations.inverse(singular).isnan().all()
    _, regular = iterations.polar_factor(singular)
    assert not (regular > 4e-7).any()


@KINDS
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [4, 34])
def test_polar_factor(kind, condition, size):
    x = of_condition(condition, size, kind)
    u, regular = iterations.polar_factor(x)
    assert torch.linalg.matrix_norm(u.mH @ u - torch.eye(size)).max() < 1e-13
    assert (u - polar(x)).abs().max() < 1e-13 * condition
    assert (regular * condition > 0.1).all()


def rotated(kernels, e, retraction):
    with kernels.backend():
        f, usable = rotation(e.to(kernels.device), retraction, torch.finfo(torch.float32).eps)
    return f.cpu(), usable.cpu()


@KINDS
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("size", [4, 18, 66])
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 30.0])
def test_rotations_are_what_their_names_say(kernels, kind, retraction, size, scale):
    e = torch.randn(3, size, size, dtype=kind) * scale
    f, usable = rotated(kernels, e, retraction)
    assert usable.all()
    identity = torch.eye(size, dtype=kind)
    condition = torch.linalg.cond(identity + e).max().item() if retraction == "polar" else 1 + scale
    assert (f + identity - unitary_factor(e, retraction)).abs().max() < 2e-13 * condition * size**0.5
    assert torch.linalg.matrix_norm((f + identity).mH @ (f + identity) - identity).max() < 1e-11


@KINDS
@pytest.mark.parametrize("retraction", ["polar", "cayley"])
@pytest.mark.parametrize("size", [4, 18, 66])
@pytest.mark.parametrize("scale", [1e4, 1e6])
def test_large_steps_are_taken_and_unitary(kernels, kind, retraction, size, scale):
    f, usable = rotated(kernels, torch.randn(3, size, size, dtype=kind) * scale / size**0.5, retraction)
    assert usable.all()
    u = f + torch.eye(size, dtype=kind)
    assert torch.linalg.matrix_norm(u.mH @ u - torch.eye(size)).max() < 1e-9


@KINDS
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("size", [4, 18])
def test_a_zero_step_is_zero_exactly(kernels, kind, retraction, size):
    f, usable = rotated(kernels, torch.zeros(2, size, size, dtype=kind), retraction)
    assert usable.all()
    assert f.abs().max() < 1e-15
    if retraction != "polar":
        assert torch.count_nonzero(f) == 0


@KINDS
@pytest.mark.parametrize("size", [4, 18])
def test_what_cannot_be_taken(kernels, kind, size):
    e = torch.randn(4, size, size, dtype=kind)
    e[1] = -torch.eye(size, dtype=kind)  # I + E = 0
    e[2] = torch.nan
    e[3] *= 1e9  # turns by more than 1e8 radians; of "cayley", all but a full turn
    expected = {"polar": [1, 0, 0, 1], "exp": [1, 1, 0, 0], "cayley": [1, 1, 0]}
    for retraction, mask in expected.items():
        f, usable = rotated(kernels, e, retraction)
        assert usable.tolist()[: len(mask)] == [bool(m) for m in mask], retraction
        assert torch.count_nonzero(f[~usable]) == 0
        assert f.isfinite().all()


@pytest.mark.parametrize("k", [2, 9, 40])
def test_a_step_has_its_basis(kernels, dtype, k):
    y, z = (torch.randn(2, 100, k, dtype=dtype) for _ in range(2))
    with kernels.backend():
        q, e = (t.cpu() for t in step_basis(y.to(kernels.device), z.to(kernels.device)))
    torch.testing.assert_close(q @ e @ q.mH, precise(z) @ precise(y).mH, atol=1e-11, rtol=0)
    identity = torch.eye(2 * k, dtype=q.dtype).expand(2, -1, -1)
    torch.testing.assert_close(q.mH @ q, identity, atol=1e-14, rtol=0)


# -- orthonormal columns ----------------------------------------------------------------------------


def orthonormal(kernels, columns):
    with kernels.backend():
        q = orthonormalize(columns.to(kernels.device)).cpu()
    assert q.shape == (*columns.shape[:-1], min(columns.shape[-2:]))
    assert q.dtype == columns.dtype
    return q


@pytest.mark.parametrize("k", [2, 3, 9, 70])
@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_columns_become_orthonormal_and_keep_their_spans(kernels, dtype, k, spread):
    """The span of the first j columns is kept, for each j: as QR does."""
    columns = torch.randn(2, 80, k, dtype=dtype)
    columns[..., 1:] = columns[..., :1] + spread * columns[..., 1:]
    q, expected = precise(orthonormal(kernels, columns)), torch.linalg.qr(precise(columns))[0]
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        q.mH @ q, torch.eye(k, dtype=q.dtype).expand(2, k, k), atol=20 * eps, rtol=0
    )
    phases = (expected.mH @ q).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(phases.abs(), torch.ones(2, k).double(), atol=100 * eps / spread, rtol=0)


@pytest.mark.parametrize("k", [2, 3, 9])
@pytest.mark.parametrize("broken", ["equal", "zero", "all zero", "one-hot", "combination"])
def test_dependent_columns_come_out_zero_or_orthonormal(kernels, dtype, k, broken):
    """A one-hot input alone in its batch gives columns that are multiples of one, to the bit."""
    columns = torch.randn(3, 20, k, dtype=dtype)
    if broken == "equal":
        columns[..., 1] = columns[..., 0]
    elif broken == "zero":
        columns[..., 0] = 0
    elif broken == "combination":
        columns[..., -1] = columns[..., :-1].sum(-1)
    else:
        columns[:, 1 if broken == "one-hot" else 0 :] = 0
    q = precise(orthonormal(kernels, columns))
    eps = torch.finfo(dtype).eps
    gram = q.mH @ q
    lengths = gram.diagonal(dim1=-2, dim2=-1).real
    assert ((lengths < eps) | ((lengths - 1).abs() < 20 * eps)).all()
    assert (gram - torch.diag_embed(lengths)).abs().max() < 20 * eps
    rest = precise(columns) - q @ (q.mH @ precise(columns))  # what is there is in the span
    assert rest.abs().max() < 100 * eps
    if broken in ("one-hot", "equal", "zero"):
        expected = {"one-hot": 1, "equal": k - 1, "zero": k - 1}[broken]
        assert ((lengths > 0.5).sum(-1) == expected).all()


@pytest.mark.parametrize("k", [2, 9])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_columns_of_any_size(kernels, dtype, k, size):
    q = orthonormal(kernels, torch.randn(30, k, dtype=dtype) * size)
    torch.testing.assert_close(q.mH @ q, torch.eye(k, dtype=dtype), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [2, 9])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_and_stays_with_its_matrix(kernels, dtype, k, bad):
    columns = torch.randn(2, 20, k, dtype=dtype)
    columns[0, 3, 1] = bad
    q = orthonormal(kernels, columns)
    assert not q[0].isfinite().all()
    assert q[1].isfinite().all()


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 9), (2, 5, 0), (0, 4, 2)], ids=str)
def test_more_columns_than_rows_give_a_basis_of_everything(kernels, dtype, shape):
    q = orthonormal(kernels, torch.randn(shape, dtype=dtype))
    identity = torch.eye(q.shape[-1], dtype=dtype).expand(*shape[:-2], -1, -1)
    torch.testing.assert_close(q.mH @ q, identity, atol=1e-6, rtol=0)


def test_the_operator_passes_opcheck(dtype):
    for shape in ((2, 12, 3), (2, 3, 12)):
        torch.library.opcheck(
            torch.ops.projunn.orthonormalize.default, (torch.randn(shape, dtype=dtype),)
        )


@pytest.mark.parametrize("size", [0.0, 1e-9, 0.05, 0.25, 4.0, math.nextafter(4.0, 5.0), 15.0])
def test_exponentials_of_a_known_size(size):
    """Also of one that is a power of two but for the last bit, which a logarithm does not see."""
    a = torch.randn(3, 6, 6, dtype=torch.complex128)
    a = a - a.mH
    a *= size / torch.linalg.matrix_norm(a, keepdim=True)
    error = iterations.exponential_of_size(a, size) - (torch.matrix_exp(a) - torch.eye(6))
    assert error.abs().max() < 1e-14 * max(1.0, size)
