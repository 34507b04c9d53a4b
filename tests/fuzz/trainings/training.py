"""A model with its optimizer, and how both are built anew."""

import copy

import torch

import projunn
from projunn import FactoredTensor, optim
from tests.fuzz.checks import check, same
from tests.fuzz.trainings.nets import Net, loss_of

OF_UNITARY, OF_PLAIN = ("SGD", "RMSprop", "AdamW", "Lion"), ("SGDG", "Isospectral")


class Training:
    """A model with its optimizer.

    Attributes:
        changes: functions that made the model what it is, in their order: of a new one of the same
            layers they make one of the same structure, apart from its numbers.
        rule: the name of the optimizer.
        groups: the parameter groups, as (names, options).
        named: whether the optimizer is given the names of its parameters.
        sketch: the ``sketch_rank`` of its layers.
        unitary: the names of its unitary parameters, with all names of shared ones.
    """

    def __init__(self, layers, dtype, sketch, named):
        self._made_of, self.sketch, self.named = (layers, dtype, sketch), sketch, named
        self.changes, self.ties = [], []
        self.model, self.dtype = self.new_model(), dtype
        self.unitary = {n for n, p in self.names() if isinstance(p, projunn.UnitaryParameter)}

    def new_model(self):
        """A model of the same structure with other numbers."""
        model = Net(*self._made_of)
        for change in self.changes:
            change(model)
        self.tie(model)
        return model

    def change(self, function):
        """Changes the structure of the model, which new ones are to have too."""
        self.changes.append(function)
        function(self.model)

    def tie(self, model):
        """Shares again what PyTorch no longer shares after some ways to load."""
        for one, other in self.ties:
            model.get_submodule(other).weight = model.get_submodule(one).weight

    def new_optimizer(self, model):
        """An optimizer of a model with the present groups, without state."""
        known = dict(model.named_parameters())
        groups = []
        for names, options in self.groups:
            params = [(name, known[name]) if self.named else known[name] for name in names]
            groups.append({"params": params, **copy.deepcopy(options)})
        more = {"lr": 0.1} if self.rule == "SGDG" else {}
        return getattr(optim, self.rule)(groups, **more)

    def start(self, rule, groups):
        """Goes on with a new optimizer."""
        self.rule, self.groups = rule, groups
        for name in self.turned() if rule == "SGDG" else ():
            projunn.project_(self.every()[name])
        self.optimizer = self.new_optimizer(self.model)

    def parameters(self):
        return dict(self.model.named_parameters())

    def names(self):
        """All names of parameters, with the parameters."""
        return list(self.model.named_parameters(remove_duplicate=False))

    def every(self):
        """The parameters by all of their names."""
        return dict(self.names())

    def turned(self):
        """The names of the weights that `SGDG` or `Isospectral` turns."""
        return set(self.groups[0][0]) if self.rule in OF_PLAIN else set()

    def has_gradients(self):
        return any(p.grad is not None for p in self.model.parameters())

    def starts_sketches(self):
        """Whether a parameter has a sketch that no step of the present optimizer has followed."""
        state = self.optimizer.state
        sketched = [p for p in self.model.parameters() if getattr(p, "sketch", None) is not None]
        return any("basis" not in state.get(p, ()) for p in sketched)

    def backward(self, x, scale=1.0):
        kind = self.dtype.to_complex() if x.is_complex() else self.dtype.to_real()
        loss = loss_of(self.model, x.to(kind))
        if loss.requires_grad:
            (loss * scale).backward()

    def step(self, way):
        """A step of the optimizer, in one of the ways that are the same."""
        before = self._plain_parameters()
        if way == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                self.optimizer.step()
        elif way == "closure":
            self.optimizer.step(lambda: None)
        elif way == "backend":
            with projunn.backend("torch"):
                self.optimizer.step()
        else:
            self.optimizer.step()
        self._check_plain(before)

    def _plain_parameters(self):
        """Copies of the plain parameters that have a gradient, with their state and options."""
        others = self.unitary | self.turned()
        found, unitary = [], {id(p) for name, p in self.names() if name in others}
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if id(p) not in unitary and p.grad is not None:
                    twin = torch.nn.Parameter(p.detach().clone())
                    twin.grad = p.grad.clone()
                    found.append((p, twin, copy.deepcopy(self.optimizer.state.get(p, {})), group))
        return found

    def _check_plain(self, before):
        """Check that plain parameters took the step of `torch.optim`, bit for bit."""
        theirs = getattr(torch.optim, "SGD" if self.rule in OF_PLAIN else self.rule, None)
        for p, twin, state, group in before if theirs is not None else ():
            reference = theirs([twin])
            own = reference.param_groups[0]
            own.update(
                {name: value for name, value in group.items() if name in own and name != "params"}
            )
            reference.state[twin] = state
            reference.step()
            check(same(p.detach(), twin.detach()), "a plain parameter steps differently")
            mine, its = self.optimizer.state[p], reference.state[twin]
            check(mine.keys() == its.keys(), f"the state of a plain parameter has {[*mine]}")
            for name, value in its.items():
                ours = mine[name]
                alike = same(ours, value) if isinstance(value, torch.Tensor) else ours == value
                check(alike, f"{name} of a plain parameter is another one")


def weaken(gradient, entry):
    """Makes a gradient one that is not finite, in place."""
    if isinstance(gradient, FactoredTensor):
        gradient.mul_(entry)
    elif gradient.is_sparse:
        gradient._values().view(-1)[0] = entry
    else:
        gradient.view(-1)[0] = entry
