"""Learn an unknown unitary matrix from examples."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from projunn.init import haar_
from projunn.nn import UnitaryLinear
from projunn.tasks.measurements import ORANGE, Score
from projunn.tasks.options import SKETCH_RANK, Option, TaskOptions, at_least_one
from projunn.tasks.task import Batch, Task

_TARGET_SEED = 1_000_003  # differs from the seeds of weights and data; else W would start at U


class Unitary(Task):
    """Learn a Haar-random unitary (or orthogonal) matrix U from pairs (x, U x), x of norm 1.

    The model is one linear layer W.  The loss is ‖W x - U x‖^2 summed over the batch, so that a plain
    gradient step of learning rate 1/2 along one example maps that example to its target.  The score is
    the relative error ‖W - U‖_F / ‖U‖_F, which is about sqrt(2) for a random W.  A real U has
    determinant 1, and so has W at the start, because rotations do not lead from one sign to the other.
    Source: arXiv 2203.05483, section 4.1.
    """

    name = "unitary"
    summary = "learn a Haar-random unitary matrix from pairs x, U x (--size)"
    loss_name = "relative error"
    declares = (Option("size", int, 256, "size of the matrix to learn", limit=at_least_one), SKETCH_RANK)
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd",
        "batch_size": 16,
        "lr": 0.5,
        "unitary_lr": 0.5,
        "dtype": "complex64",
        "steps": 4000,
    }
    compared: ClassVar[dict[str, str]] = {"linear": ORANGE}
    scores_training_loss = False

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options)
        self.naive = 2**0.5
        size = self.options.size
        source = torch.Generator().manual_seed(_TARGET_SEED + self.options.seed)
        target = haar_(torch.empty(size, size, dtype=self.options.dtype), source)
        self.target = make_rotation_(target)

    @property
    def title(self) -> str:
        return f"{self.name}: n = {self.options.size}"

    def build(self, body: str) -> nn.Module:
        size, dtype = self.options.size, self.options.dtype
        if body == "linear":
            return nn.Linear(size, size, bias=False, dtype=dtype)
        sketch_rank = self.options.sketch_rank
        layer = UnitaryLinear(size, size, bias=False, dtype=dtype, sketch_rank=sketch_rank)
        make_rotation_(layer.matrix.detach())
        return layer

    def batch(self, generator: torch.Generator) -> Batch:
        shape = (self.options.batch_size, self.options.size)
        x = torch.randn(shape, dtype=self.target.dtype, generator=generator)
        x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x, x @ self.target.mT

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs().square().sum()

    @torch.no_grad()
    def score(self, model: nn.Module, device: torch.device) -> Score:
        weight = model(torch.eye(self.options.size, dtype=self.target.dtype, device=device)).mT
        target = self.target.to(device)
        error = torch.linalg.matrix_norm(weight - target) / torch.linalg.matrix_norm(target)
        return Score(error.item())


def make_rotation_(matrix: Tensor) -> Tensor:
    """Give a real orthogonal matrix determinant 1, by the sign of its first row; in place."""
    # Only the sign is asked for: in float32 the determinant itself comes out as 0 from n = 400 or so on.
    if not matrix.is_complex() and torch.linalg.slogdet(matrix).sign < 0:
        matrix[0].neg_()
    return matrix
