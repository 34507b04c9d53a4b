"""The interface of a task to the command line, to the training loop and to the picture of a run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from projunn.tasks.measurements import BLUE, Metric, Score, Trained
from projunn.tasks.options import Option, TaskOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]


class Task:
    """Base of the tasks: data, a loss, and the models that may learn it.

    A subclass declares all that is special to it.  A task draws its batches from a generator that it is
    given, so that a run can be repeated and resumed: the same state of the generator gives the same
    batch.

    Args:
        options: a `TaskOptions`; missing options get the defaults that the class declares.

    Class attributes:
        name: the word after ``projunn train``.
        summary: one line for ``--help``.
        loss_name: what the held-out loss is, for instance ``"cross-entropy (nats)"``.
        declares: the options that this task has and others may not have.
        defaults: values of options for this task in the place of the general defaults.
        compared: the models that may be trained beside the unitary one, and their colours.
        metrics: what `measure` measures.
        scores_training_loss: False if the held-out score is another quantity than the training loss.

    Attributes:
        options: the `TaskOptions`, complete.
        naive: the loss of the best answer that ignores the input.

    Raises:
        ValueError: an option has a value that the task does not take.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    loss_name: str
    declares: ClassVar[tuple[Option, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = {}
    compared: ClassVar[Mapping[str, str]] = {}
    metrics: ClassVar[tuple[Metric, ...]] = ()
    scores_training_loss: ClassVar[bool] = True
    naive: float

    def __init__(self, options: TaskOptions) -> None:
        self.options = options.completed(self.declares)
        self.check(self.options)

    @classmethod
    def defaults_for(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the options that the user has not ``given``; they may depend on those given."""
        return {option.name: option.default for option in cls.declares} | dict(cls.defaults)

    @classmethod
    def check(cls, options: TaskOptions) -> None:
        """Raise ValueError if the options do not go together; by default all do."""

    @classmethod
    def color(cls, body: str) -> str:
        """The colour of a model in pictures."""
        return cls.compared.get(body, BLUE)

    @property
    def title(self) -> str:
        """What is trained on what, for the head of a picture."""
        return self.name

    def build(self, body: str) -> nn.Module:
        """The model called ``body``, which is ``"unitary"`` or one of ``compared``, on the CPU.

        Its weights are drawn from torch's own generator.
        """
        raise NotImplementedError

    def batch(self, generator: torch.Generator) -> Batch:
        """Inputs and targets of one training step."""
        raise NotImplementedError

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, which training lowers."""
        raise NotImplementedError

    def accuracy(self, output: Tensor, target: Tensor) -> Tensor | None:
        """The share of right answers, or None where the targets are numbers."""
        return None

    def score(self, model: nn.Module, device: torch.device) -> Score:
        """The loss and the accuracy of the model on held-out data, which are the same in every run."""
        raise NotImplementedError

    def measure(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """The values of ``metrics``, by name; None for a number that these options do not ask for."""
        return {}

    def draw(self, figure: "Figure", models: list[Trained], axis: str, rank: int) -> None:
        """Draw a run into an empty figure, over ``axis``: ``"step"`` or ``"seconds"``.

        Unless a task draws its own picture, it shows the loss, the unitarity defect, and the energy of
        the gradient that a step of ``rank`` can take.
        """
        from projunn.tasks.picture import draw_run

        draw_run(figure, self, models, axis, rank)
