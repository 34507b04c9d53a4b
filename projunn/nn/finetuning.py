"""Orthogonal fine-tuning: a linear layer whose input is rotated, block by block."""

import fnmatch
import warnings

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from projunn.arguments import flag, matrices, of_kind, positive, tensor
from projunn.init import identity_
from projunn.manifold import MATRIX_DTYPES, UnitaryParameter, dtype_names
from projunn.nn.module import UnitaryModule

_LARGEST = 1e4  # entries of a skew matrix whose rotation is so close to one of a half turn are refused


class OrthogonalFinetuning(UnitaryModule):
    """``y = (x R) W^T + b``: a pretrained linear layer, fixed, and rotations R of its input (OFT).

        R = diag(R_1, ..., R_B),  R_i (block_size x block_size) orthogonal, the identity at the start

    The layer computes what the pretrained one did until R is trained, and W keeps its singular values
    and the angles between its rows.  R is trained with `projunn.optim`, which keeps each block
    orthogonal to 1e-6 whatever the steps.  Published code computes a Cayley transform in every forward
    instead, by a truncated series.  `merge` gives the plain layer with the weight ``W R^T``.

    Args:
        linear: the pretrained layer, whose parameters are taken, not copied, and get no gradients.
        block_size: the size of a block; it divides ``in_features``.

    Shape:
        as ``linear``.

    Attributes:
        linear: the pretrained layer.
        weight, bias: those of the plain layer that computes the same, ``W R^T`` and b, for programs that
            read them; made anew at each look.
        rotation: the `projunn.UnitaryParameter` R, (in_features / block_size, block_size, block_size),
            in the dtype of the layer, or float32 where that is in half precision.

    Raises:
        TypeError: ``linear`` is no ``nn.Linear``, or complex.
        ValueError: ``block_size`` does not divide ``in_features``.

    Source: Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning, NeurIPS 2023, arXiv
    2306.07280.
    """

    def __init__(self, linear: nn.Linear, block_size: int) -> None:
        of_kind("linear", linear, nn.Linear, "an nn.Linear")
        if linear.weight.is_complex():
            raise TypeError(f"linear: is {linear.weight.dtype}, wanted a real layer")
        half = linear.weight.dtype in (torch.float16, torch.bfloat16)
        super().__init__(torch.float32 if half else linear.weight.dtype)
        size = positive("block_size", block_size)
        if linear.in_features % size:
            raise ValueError(f"block_size: {size} does not divide in_features = {linear.in_features}")
        self.linear = linear.requires_grad_(False)
        self.training = linear.training
        blocks = linear.in_features // size
        self.rotation = self._matrices(blocks, size, size, device=linear.weight.device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Makes R the identity."""
        identity_(self.rotation)

    @property
    def in_features(self) -> int:
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        return self.linear.out_features

    @property
    def block_size(self) -> int:
        return self.rotation.shape[-1]

    def forward(self, input: Tensor) -> Tensor:
        if tensor("input", input).ndim == 0 or input.shape[-1] != self.in_features:
            raise ValueError(f"input: got shape {tuple(input.shape)}, wanted (*, {self.in_features})")
        blocks = input.unflatten(-1, (-1, self.block_size))
        turned = einsum(blocks, self.rotation.to(input.dtype), "... b i, b i j -> ... b j")
        return self.linear(turned.flatten(-2))

    @property
    def weight(self) -> Tensor:
        """``W R^T``, with gradients for R: `torch.nn.TransformerEncoderLayer` reads it in evaluation."""
        rows = rearrange(self.linear.weight.double(), "o (b j) -> o b j", j=self.block_size)
        turned = einsum(rows, self.rotation.double(), "o b j, b i j -> o b i")
        return turned.flatten(-2).to(self.linear.weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The plain layer that computes the same: a new ``nn.Linear`` with the weight ``W R^T``.

        Its weight and its bias learn (``requires_grad=True``), also where those of ``linear`` are fixed.
        If W is unitary (`projunn.constrain`), so is ``W R^T``.
        """
        weight, bias, given = self.weight, self.bias, self.linear.weight
        plain = nn.Linear(
            *(self.in_features, self.out_features),
            bias=bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        plain.weight.copy_(weight)
        if bias is not None:
            plain.bias.copy_(bias)
        if isinstance(given, UnitaryParameter):
            plain.weight = UnitaryParameter(plain.weight.data, blocks=given.blocks)
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"block_size={self.block_size}"


def finetune(model: nn.Module, pattern: str = "*", block_size: int = 32) -> nn.Module:
    """Puts `OrthogonalFinetuning` around linear layers of a model, in place, and returns the model.

    All parameters of the model are fixed (``requires_grad=False``) but the rotations of this call and of
    earlier ones, which stay as they were.  So each call may have its own pattern and block size.  Layers
    of subclasses of ``nn.Linear`` are passed over and fixed: those with a parametrization, and the
    ``out_proj`` of ``nn.MultiheadAttention``.

    Args:
        model: any module.
        pattern: which layers, by their names in ``model.named_modules()``: ``"*.query"``, say.
        block_size: as in `OrthogonalFinetuning`.

    Raises:
        ValueError: no ``nn.Linear`` inside the model that has no rotations yet has such a name, or
            ``block_size`` does not divide the size of an input.  The model is as it was then.
    """
    of_kind("model", model, nn.Module, "a module")
    of_kind("pattern", pattern, str, "one name or pattern of layers (call finetune again for others)")
    every = {
        f"{prefix}.{name}".lstrip("."): (parent, name, layer)
        for prefix, parent in model.named_modules()
        for name, layer in parent._modules.items()
        if type(layer) is nn.Linear and not isinstance(parent, OrthogonalFinetuning)
    }
    found = [place for path, place in every.items() if fnmatch.fnmatchcase(path, pattern)]
    if not found:
        there = ", ".join(map(repr, [*every][:8])) or "none inside the model without rotations"
        if type(model) is nn.Linear:
            there = f"none inside an nn.Linear; wanted OrthogonalFinetuning(model, {block_size})"
        raise ValueError(f"pattern: {pattern!r} is the name of no nn.Linear; there are {there}")
    learned = {id(layer): layer.weight.requires_grad for _, _, layer in found}
    wrapped: dict[int, OrthogonalFinetuning] = {}
    try:
        for _, _, layer in found:
            if id(layer) not in wrapped:
                wrapped[id(layer)] = OrthogonalFinetuning(layer, block_size)
    except (TypeError, ValueError):
        for _, _, layer in found:
            layer.requires_grad_(learned[id(layer)])
        raise
    earlier = [m.rotation for m in model.modules() if isinstance(m, OrthogonalFinetuning)]
    turning = [rotation for rotation in earlier if rotation.requires_grad]
    model.requires_grad_(False)
    for rotation in turning:
        rotation.requires_grad_(True)
    for parent, name, layer in found:
        setattr(parent, name, wrapped[id(layer)])
    return model


def merge(model: nn.Module) -> nn.Module:
    """Replaces each `OrthogonalFinetuning` in a model by its plain layer, in place; returns the model.

    If the model is one itself, its plain layer is returned.  The weights and biases of the plain layers
    learn (``requires_grad=True``), and are unitary where those below the rotations were; parameters
    elsewhere in the model stay as they are, fixed or not.  A model without any `OrthogonalFinetuning`,
    such as one that is merged already, is returned as it is, with a warning.
    """
    if isinstance(model, OrthogonalFinetuning):
        return model.merge()
    of_kind("model", model, nn.Module, "a module")
    merged: dict[int, nn.Linear] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent._modules.items()):
            if not isinstance(layer, OrthogonalFinetuning):
                continue
            if id(layer) not in merged:
                merged[id(layer)] = layer.merge()
            setattr(parent, name, merged[id(layer)])
    if not merged:
        warnings.warn(
            f"model: {type(model).__name__} has no projunn.nn.OrthogonalFinetuning, so that nothing was"
            " merged; wanted a model that projunn.nn.finetune returned, merged once",
            stacklevel=2,
        )
    return model


def rotation_from_skew(vectors: Tensor, *, transposed: bool = False) -> Tensor:
    """Exact rotations from the skew-symmetric parameters of an OFT checkpoint.

        R = (I + Q) (I - Q)^-1,  Q = -Q^T with the vector as its part above the diagonal, row by row

    The series I + 2 Q + 2 Q^2 + ..., which is truncated in published code, approximates it.

    Args:
        vectors: (B, b (b - 1) / 2), as PEFT stores ``oft_R.<adapter>.weight``.
        transposed: the checkpoint was trained with ``use_cayley_neumann=False``, for which PEFT has
            (I - Q) (I + Q)^-1, the inverse of the above.

    Returns:
        R, (B, b, b), computed in float64 and returned in the dtype of ``vectors``, or float32 if that is
        in half precision: assign it, ``layer.rotation.data.copy_(R)``.

    Raises:
        ValueError: the size of a vector is not b (b - 1) / 2 for any b, or entries are not finite.
    """
    flag("transposed", transposed)
    tensor("vectors", vectors)
    count = vectors.shape[-1] if vectors.ndim else 0
    size = round((1 + (1 + 8 * count) ** 0.5) / 2)
    if vectors.ndim < 1 or not vectors.is_floating_point() or size * (size - 1) // 2 != count:
        raise ValueError(
            f"vectors: got shape {tuple(vectors.shape)} and {vectors.dtype}, wanted reals"
            " (B, b (b - 1) / 2)"
        )
    if not vectors.isfinite().all():
        raise ValueError("vectors: has entries that are not finite")
    q = vectors.new_zeros(*vectors.shape[:-1], size, size, dtype=torch.float64)
    rows, columns = torch.triu_indices(size, size, 1, device=vectors.device)
    q[..., rows, columns] = vectors.double()
    q = q - q.mT
    q = -q if transposed else q
    identity = torch.eye(size, dtype=q.dtype, device=q.device)
    kept = vectors.dtype if vectors.dtype in MATRIX_DTYPES else torch.float32
    return torch.linalg.solve(identity - q, identity + q).to(kept)


def skew_from_rotation(rotation: Tensor, *, transposed: bool = False) -> Tensor:
    """The inverse of `rotation_from_skew`: Q = (R - I) (R + I)^-1, above the diagonal.

    Args:
        rotation: R, (B, b, b), orthogonal.
        transposed: as in `rotation_from_skew`.

    Raises:
        ValueError: R has an eigenvalue -1 (a half turn, or a reflection), or one too close to it, where
            there is no Q of finite size; or R is no batch of square matrices.
        TypeError: it is in half precision, or complex.
    """
    flag("transposed", transposed)
    matrices("rotation", rotation)
    if rotation.dtype not in MATRIX_DTYPES or rotation.is_complex():
        raise TypeError(f"rotation: is {rotation.dtype}, wanted a real one of {dtype_names()}")
    size = rotation.shape[-1]
    if rotation.shape[-2] != size:
        raise ValueError(
            f"rotation: got shape {tuple(rotation.shape)}, wanted square matrices (B, b, b)"
        )
    r = rotation.detach().double()
    identity = torch.eye(size, dtype=r.dtype, device=r.device)
    q, failed = torch.linalg.solve_ex(r + identity, r - identity)
    q = (q - q.mT) / 2
    if failed.any() or not bool((q.abs() < _LARGEST).all()):
        raise ValueError(
            "rotation: a matrix has an eigenvalue -1, or one close to it; wanted a rotation by angles"
            " below a half turn, which has a skew-symmetric matrix that it is the Cayley transform of"
        )
    rows, columns = torch.triu_indices(size, size, 1, device=r.device)
    return (-q if transposed else q)[..., rows, columns].to(rotation.dtype)
