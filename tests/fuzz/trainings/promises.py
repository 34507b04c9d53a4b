"""What must hold after each operation."""

from dataclasses import dataclass, field

import torch

import projunn
from projunn import FactoredTensor, OffManifoldWarning, UnitaryParameter, view_like
from tests.fuzz.checks import DEFECT, check, defects, same


@dataclass
class Facts:
    """What is known of a training.

    Attributes:
        off: the names of weights that were put off the manifold.
        unsaid: those of them that no warning has named yet.
        unsettled: the shapes of parameters that were constrained since they were stepped: their state
            is converted when it is loaded, or at the next step.
        single: whether weights have been in single precision.
    """

    off: set = field(default_factory=set)
    unsaid: set = field(default_factory=set)
    unsettled: set = field(default_factory=set)
    single: bool = False

    def projected(self, names):
        """Weights were brought back."""
        self.off.difference_update(names)
        self.unsaid.difference_update(names)

    def forget(self):
        """All weights are projected, or plain, and the optimizer is a new one."""
        for known in (self.off, self.unsaid, self.unsettled):
            known.clear()

    def near(self, dtype):
        """The largest defect of a weight on the manifold."""
        return 4 * max(DEFECT[dtype.to_real()], DEFECT[torch.float32] if self.single else 0.0)


def defects_of(training, twin):
    """The largest defect of each unitary weight, without a word to the library about them."""
    found = {}
    known = training.unitary | (training.turned() if training.rule == "SGDG" else set())
    for (name, p), (_, q) in zip(training.names(), twin.names(), strict=True):
        if name in known and p.numel():
            check(p.isfinite().all(), f"{name} is not finite")
            found[name] = p.dtype, defects(view_like(q, p.detach())).max().item()
    return found


def note_edits(training, twin, facts):
    """Notes which weights are off the manifold now that may be."""
    for name, (dtype, defect) in defects_of(training, twin).items():
        if defect > facts.near(dtype):
            if name not in facts.off and defect > SAID:
                facts.unsaid.add(name)
            facts.off.add(name)


def check_weights(training, twin, facts):
    """Check that unitary weights are on the manifold, and that one that was off was named before."""
    for name, (dtype, defect) in defects_of(training, twin).items():
        if defect <= facts.near(dtype):
            back = name in facts.off
            facts.off.discard(name)
            check(not back or name not in facts.unsaid, f"{name} was brought back in silence")
        else:
            check(name in facts.off, f"{name} has a defect of {defect:.2g}")


def check_recognised(training):
    """Check which parameters are unitary.  To ask makes the library look at all modules."""
    found = {id(p) for p in projunn.unitary_parameters(training.model)}
    for name, p in training.names():
        wanted = name in training.unitary
        check((id(p) in found) == wanted, f"{name} is {'not' * wanted} listed as unitary")
        check(isinstance(p, UnitaryParameter) == wanted, f"{name} is a {type(p).__name__}")


def check_alike(training, twin, facts):
    """Check that two trainings are the same in all that counts, bit for bit."""
    mine, its = training.names(), twin.names()
    check([n for n, _ in mine] == [n for n, _ in its], "other parameters")
    check(tied(mine) == tied(its), "other parameters are shared")
    for (name, p), (_, q) in zip(mine, its, strict=True):
        check(p.dtype == q.dtype, f"{name} is {p.dtype}")
        check(p.requires_grad == q.requires_grad, f"{name} is frozen, or is no longer")
        check(same(p.detach(), q.detach()), f"{name} is another one")
        if isinstance(p, UnitaryParameter) and isinstance(q, UnitaryParameter):
            kinds = [(w.pairs, w.blocks, w.singletons, w.sketch is None) for w in (p, q)]
            check(kinds[0] == kinds[1], f"{name} is laid out as {kinds[0]}, wanted {kinds[1]}")
    modes = [[m.training for m in t.model.modules()] for t in (training, twin)]
    check(modes[0] == modes[1], "modules are in another mode")
    check_optimizers(training, twin, facts.unsettled)


def tied(named):
    """For each parameter, the first that is the same object."""
    first = {}
    return [first.setdefault(id(p), i) for i, (_, p) in enumerate(named)]


def check_optimizers(training, twin, unsettled):
    mine, its = training.optimizer, twin.optimizer
    check(type(mine) is type(its), "another optimizer")
    for group, other in zip(mine.param_groups, its.param_groups, strict=True):
        differ = group.keys() ^ other.keys()
        check(differ <= {"differentiable"}, f"other options: {differ}")  # PyTorch adds it to copies
        for name in group.keys() - {"params", *differ}:
            check(equal(group[name], other[name]), f"{name} is {group[name]}, wanted {other[name]}")
        for p, q in zip(group["params"], other["params"], strict=True):
            a, b = mine.state.get(p, {}), its.state.get(q, {})
            if tuple(p.shape) in unsettled and not ("missed" in a and "missed" in b):
                continue
            check(
                a.keys() == b.keys(),
                f"the state of one of shape {tuple(p.shape)} has {a.keys() ^ b.keys()}",
            )
            for name in a:
                check(equal(a[name], b[name]), f"{name} of the state is another one")


def equal(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        check(not isinstance(a, FactoredTensor), "factors in the state")
        return a.dtype == b.dtype and same(a, b)
    return type(a) is type(b) and a == b


SAID = 1e-3  # a defect that is surely said
# What PyTorch says of what courses do; the rest is a violation.
USUAL = ("lr_scheduler.step()", "enable_nested_tensor", "_foreach", "share_memory")


def check_warnings(caught, training, facts, what, meanwhile=False):
    """Check that warnings name weights that are off, and those only; note which.

    Args:
        meanwhile: whether weights were off in the course of what was done.
    """
    every = training.every()
    for warning in caught:
        text = str(warning.message)
        if not issubclass(warning.category, OffManifoldWarning):
            usual = any(words in text for words in USUAL)
            check(usual, f"{what}: {warning.category.__name__}: {text:.200}")
            continue
        check(facts.off or meanwhile, f"{what}: {text:.200}")
        for name in [*facts.unsaid]:
            of_shape = f"of shape {tuple(every[name].shape)}"
            if name.rpartition(".")[2] in text or of_shape in text or " more" in text:
                facts.unsaid.discard(name)
