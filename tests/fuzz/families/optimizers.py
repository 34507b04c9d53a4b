"""Some steps of an optimizer with hostile gradients, each matrix watched on its own.

    gradient not finite, or none         weight (to the bit) and averages stay; the former is counted
    an ordinary gradient                 the step is taken
    where the factors are exact too      it is the one of the rule's formula in float64
    any finite gradient                  weight finite and unitary, state finite

"Ordinary" gradients are those of matrices that met no huge one so far: after 1e19 a momentum may refuse
steps until it has decayed.
"""

import torch

from projunn import optim, view_like
from projunn.optim.options import FACTORIZATIONS, WARM, unitary_learning_rate
from projunn_kernels import RETRACTIONS
from tests.dense import precise
from tests.fuzz import rules
from tests.fuzz.checks import check, check_unitary, eps, finite, flat, same, unchanged
from tests.fuzz.parameters import drawn_parameter, numbers

SHARE = 24
RULES = ("SGD", "RMSprop", "AdamW", "Lion")
LARGE = 1e6  # gradients above this are no longer ordinary
LONG = 50.0  # steps above this are not compared
# Of an entry after a step of size s, in units of eps (1 + s) over the smallest singular value of I + E.
ERROR = {torch.float32: 300, torch.float64: 3000}


def case(draw):
    rule = draw.choice("rule", RULES)
    options = drawn_options(draw, rule)
    parameters = [drawn_parameter(draw, i) for i in range(draw.integer("parameters", 1, 3))]
    groups = [p.weight for p in parameters]
    plain = torch.nn.Parameter(draw.randn(3, dtype=torch.float32))
    optimizer = getattr(optim, rule)([*groups, plain], **options)
    reference = torch.nn.Parameter(plain.detach().clone())
    theirs = (
        None if rule == "Lion" else getattr(torch.optim, rule)([reference], **plain_options(options))
    )
    watched = [Watched(rule, optimizer, p) for p in parameters]
    for _ in range(draw.integer("steps", 2, 6)):
        for one in watched:
            one.before(draw)
        plain.grad = draw.randn(3, dtype=torch.float32)
        reference.grad = plain.grad.clone()
        optimizer.step()
        counted = optimizer.skipped_steps()
        for one in watched:
            one.after()
        check(counted == optimizer.skipped_steps(), "skipped_steps() changes by itself")
        if theirs is not None:
            theirs.step()
            check(torch.equal(plain, reference), "a parameter that is not unitary steps differently")


def drawn_options(draw, rule):
    """The arguments of an optimizer."""
    unset = {"lr": draw.choice("lr", (1e-3, 0.1, 1.0, 30.0))}
    if rule == "SGD":
        unset["momentum"] = draw.choice("momentum", (0, 0, 0.9, 0.5))
        unset["nesterov"] = bool(unset["momentum"]) and draw.chance("nesterov", 0.4)
        unset["dampening"] = 0 if unset["nesterov"] else draw.choice("dampening", (0, 0, 0.5))
    elif rule == "RMSprop":
        unset["alpha"] = draw.choice("alpha", (0.99, 0.5))
        unset["eps"] = draw.choice("eps", (1e-8, 1e-3))
        unset["momentum"] = draw.choice("momentum", (0, 0, 0.9))
        unset["centered"] = draw.chance("centered", 0.3)
    else:
        unset["betas"] = draw.choice("betas", ((0.9, 0.999), (0.0, 0.5)))
    if rule == "AdamW":
        unset["eps"] = draw.choice("eps", (1e-8, 1e-3))
        unset["amsgrad"] = draw.chance("amsgrad", 0.3)
    return unset | {
        "weight_decay": draw.choice("weight_decay", (0.0, 0.1)),
        "maximize": draw.chance("maximize", 0.2),
        "rank": draw.choice("rank", (1, 1, 2, 3, 99)),
        "retraction": draw.choice("retraction", tuple(RETRACTIONS)),
        "factorization": draw.choice("factorization", ("subspace", "subspace", *FACTORIZATIONS)),
        "unitary_lr": draw.choice("unitary_lr", (None, None, 1e-3, 0.5)),
        "polish_every": draw.choice("polish_every", (None, None, 0, 1, 2)),
    }


def plain_options(options):
    ours = ("rank", "retraction", "factorization", "unitary_lr", "polish_every")
    return {name: value for name, value in options.items() if name not in ours}


class Watched:
    """One unitary parameter, its gradients, and what is known of its matrices."""

    def __init__(self, rule, optimizer, parameter):
        self.rule, self.optimizer, self.parameter = rule, optimizer, parameter
        self.weight = parameter.weight
        self.group = optimizer.param_groups[0]
        count = len(self.matrices())
        self.taken = [0] * count  # steps
        self.ordinary = torch.ones(count, dtype=torch.bool)
        self.skipped = 0

    def matrices(self):
        return flat(view_like(self.weight, self.weight.detach()))

    def averages(self):
        """The averages of each matrix, by name: (B, m, n)."""
        state, shape = self.optimizer.state.get(self.weight, {}), self.matrices().shape
        # R above V, (m + n, k), may have as many numbers as the matrix.
        state = {name: value for name, value in state.items() if name not in WARM["single_pass"]}
        found = {name: numbers(self.weight, value, shape) for name, value in state.items()}
        return {name: value.clone() for name, value in found.items() if value is not None}

    def before(self, draw):
        gradient, self.listed = self.parameter.gradient(draw)
        self.gradient = gradient
        self.weight.grad = self.parameter.stored(gradient, self.listed)
        self.given = self.weight.grad.clone()
        self.old, self.old_averages = self.matrices().clone(), self.averages()

    def after(self):
        new, averages, state = self.matrices(), self.averages(), self.optimizer.state[self.weight]
        given, grad = self.given, self.weight.grad
        if grad.is_sparse:
            given, grad = given.coalesce().values(), grad.coalesce().values()
        check(same(given, grad), "the gradient changed")
        check_unitary(new, "a weight")
        for name, value in state.items():
            check(value.isfinite().all(), f"{name} of the state is not finite")
        sound = finite(self.gradient)
        moves = sound & self.listed
        kept = unchanged(self.old, new)
        check(
            kept[~moves].all(), "a weight moved whose gradient is not finite, or that was not selected"
        )
        rule_averages = self.optimizer._averages(self.group)
        for name, value in averages.items():
            if name not in self.old_averages and name not in rule_averages:
                continue  # a basis, which starts at random
            # By value: a mean of -0, that of a subnormal number, may become +0.
            still = self.old_averages.get(name, torch.zeros_like(value)) == value
            check(still[~moves].all(), f"{name} moved where there was no step")
        bad = int((self.listed & ~sound).sum())
        largest = self.gradient.abs().flatten(1).amax(1) if self.gradient[0].numel() else 0
        self.ordinary &= ~(sound & self.listed & (largest > LARGE))
        doubtful = 0
        if self.rule == "AdamW" or self.group.get("dampening"):
            # What counts as the first step of a matrix that was not selected so far is not defined.
            self.ordinary &= self.listed
        for i in torch.nonzero(moves).flatten().tolist():
            doubtful += not self.compare(i, new[i], averages)
            self.taken[i] += 1
        counted, self.skipped = int(state["skipped"]) - self.skipped, int(state["skipped"])
        words = f"{counted} skipped steps were counted, wanted {bad} to {bad + doubtful}"
        check(bad <= counted <= bad + doubtful, words)

    def compare(self, i, new, averages):
        """Compare a step with the formula; whether it certainly was to be taken."""
        if not self.ordinary[i]:
            return False
        group = self.group
        old = {n: v[i] for n, v in self.old_averages.items()} or {
            n: torch.zeros_like(v[i]) for n, v in averages.items()
        }
        d = rules.direction(self.rule, group, self.gradient[i], old, self.taken[i])
        rate = float(unitary_learning_rate(group, d.shape))
        step = d * (rate if group["maximize"] else -rate)
        m, n = step.shape
        rank, factorization = min(group["rank"], m, n), group["factorization"]
        exact = (factorization == "svd") or (rank == min(m, n) and m >= n)
        if factorization == "tangent":
            exact = exact and m == n
        elif factorization == "single_pass":  # along what the last direction spans, and a hundredth more
            exact = False
        step, ratio = rules.truncated(step, rank) if factorization == "svd" else (step, 0.0)
        size = torch.linalg.matrix_norm(step).item()
        if size > LONG:
            self.ordinary[i] = False
        if size > LONG or ratio > 0.9 or self.is_rounding(i, d, old):
            return False
        expected, smallest = rules.stepped(
            self.old[i], step, group["retraction"], factorization == "tangent"
        )
        if smallest < 1e-2 or (group["retraction"] == "polar" and not exact):
            return False
        if exact:
            error = (precise(new) - expected).abs().max().item()
            bound = ERROR[new.dtype.to_real()] * eps(new) * (1 + size) / smallest / (1 - ratio)
            check(error < bound, f"a step of size {size:.2g} is off by {error:.2g}, above {bound:.2g}")
        return True

    def is_rounding(self, i, d, old):
        """Whether rounding decides the direction: of centred squares near zero, or a sign."""
        if self.rule == "Lion":
            beta = self.group["betas"][0]
            signed = (beta * old["exp_avg"] + (1 - beta) * self.gradient[i]).abs()
            return bool((signed[signed > 0] < 1e-33).any())
        return bool(self.rule == "RMSprop" and self.group["centered"] and d.abs().max() > 100)
