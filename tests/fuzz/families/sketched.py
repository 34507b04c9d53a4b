"""Training steps of layers with ``sketch_rank``, whose gradients come in factors, on hostile batches.

factors not finite        weight and averages keep every bit, and it is counted
an ordinary batch         the step is taken, after any number of bad ones
a sketch of full rank     the step of SGD is the one of the dense gradient in float64
any finite batch          weight finite and unitary, state finite
"""

import torch

from projunn import optim, view_like
from projunn.nn import BlockUnitaryLinear, UnitaryConv2d, UnitaryLinear, UnitaryRNN
from projunn.optim.options import unitary_learning_rate
from projunn_kernels import RETRACTIONS
from tests.dense import precise
from tests.fuzz import rules
from tests.fuzz.checks import check, check_unitary, eps, flat, unchanged

SHARE = 10
RULES = ("SGD", "RMSprop", "AdamW")
BATCHES = (
    *("normal", "normal", "identical", "one-hot", "zero", "tiny", "huge", "nan", "inf"),
    *("tiny loss", "huge loss", "empty", "one example"),
)
TAME = ("normal", "identical", "one-hot", "one example", "empty", "zero", "tiny", "tiny loss")
ERROR = 1e4  # of an entry after a step, in units of eps: see `tests.fuzz.families.optimizers`


def case(draw):
    dtype = draw.dtype()
    torch.manual_seed(draw.below(2**31))
    layer, shape = drawn_layer(draw, dtype)
    rule = draw.choice("rule", RULES)
    options = {
        "lr": draw.choice("lr", (1e-3, 0.1, 1.0)),
        "rank": draw.choice("rank", (1, 1, 2, 5, 99)),
        "retraction": draw.choice("retraction", tuple(RETRACTIONS)),
        "factorization": draw.choice("factorization", ("subspace", "lsi", "column", "svd")),
        "polish_every": draw.choice("polish_every", (None, 0, 1)),
    }
    if rule != "AdamW":
        options["momentum"] = draw.choice("momentum", (0, 0.9))
    if rule == "SGD":
        options["nesterov"] = bool(options["momentum"]) and draw.chance("nesterov", 0.5)
    optimizer = getattr(optim, rule)(layer.parameters(), **options)
    weights = [p for p in layer.parameters() if getattr(p, "sketch", None) is not None]
    tame = True
    for _ in range(draw.integer("steps", 2, 6)):
        kind = draw.unnamed(BATCHES)
        draw.said.setdefault("batches", []).append(kind)
        tame = tame and (kind in TAME or kind in ("nan", "inf"))
        backward(draw, layer, shape, dtype, kind)
        tame = tame and not any(is_large(weight.grad) for weight in weights)
        step(optimizer, weights, kind, tame)
    optimizer.zero_grad()
    if tame:
        backward(draw, layer, shape, dtype, "normal")
        step(optimizer, weights, "normal", not any(is_large(weight.grad) for weight in weights))


def is_large(grad):
    """Whether a gradient is finite and so large that its step may be refused: training diverged."""
    size = torch.linalg.matrix_norm(grad.left) * torch.linalg.matrix_norm(grad.right)
    return bool((size.isfinite() & (size > 1e4)).any())


def drawn_layer(draw, dtype):
    """A layer with a sketch, and the shape of its inputs but for the batch."""
    kind, n = draw.choice("layer", ("linear", "linear", "block", "rnn", "conv")), draw.integer("n", 1, 9)
    sketch = draw.choice("sketch_rank", (1, 2, 4, 9))
    if kind == "linear":
        m = draw.integer("m", 1, 9)
        return UnitaryLinear(n, m, bias=False, dtype=dtype, sketch_rank=sketch), (n,)
    if kind == "block":
        return BlockUnitaryLinear(2, n, num_factors=2, dtype=dtype, sketch_rank=sketch), (2 * n,)
    if kind == "rnn":
        return UnitaryRNN(3, n, dtype=dtype, batch_first=True, sketch_rank=sketch), (4, 3)
    size = draw.integer("size", 1, 4)
    return UnitaryConv2d(n, n, size, dtype=dtype, sketch_rank=sketch), (n, size, size)


def backward(draw, layer, shape, dtype, kind):
    count = {"empty": 0, "one example": 1}.get(kind, 6)
    x = draw.randn(count, *shape, dtype=dtype)
    if kind == "identical":
        x = x[:1].expand_as(x)
    elif kind == "one-hot":
        x = torch.zeros_like(x)
        x[0].view(-1)[draw.below(x[0].numel())] = 1
    elif kind in ("nan", "inf"):
        x[draw.below(count)].view(-1)[draw.below(x[0].numel())] = float(kind)
    x = x * {"zero": 0.0, "tiny": 1e-30, "huge": 1e19}.get(kind, 1.0)
    layer.zero_grad()
    output = layer(x)
    output = output[0] if isinstance(output, tuple) else output
    wanted = draw.randn(*output.shape, dtype=output.dtype)
    loss = (output * wanted.conj()).real.sum() + output.abs().square().sum() / 2
    (loss * {"tiny loss": 1e-30, "huge loss": 1e19}.get(kind, 1.0)).backward()


def step(optimizer, weights, kind, tame):
    """Take a step and check every weight."""
    group, before = optimizer.param_groups[0], []
    for weight in weights:
        state = {n: v.clone() for n, v in optimizer.state[weight].items()}
        before.append((view_like(weight, weight.detach()).clone(), state, weight.grad))
    optimizer.step()
    for weight, (old, state, grad) in zip(weights, before, strict=True):
        new, now = flat(view_like(weight, weight.detach())), optimizer.state[weight]
        check_unitary(new, f"a weight after a batch: {kind}")
        for name, value in now.items():
            check(value.isfinite().all(), f"{name} of the state is not finite after a batch: {kind}")
        sound = (
            grad.left.isfinite().flatten(-2).all(-1) & grad.right.isfinite().flatten(-2).all(-1)
        ).flatten()
        still = unchanged(flat(old), new)
        check(still[~sound].all(), "a weight moved whose gradient is not finite")
        counted = int(now["skipped"]) - int(state.get("skipped", 0))
        bad = int((~sound).sum())
        check(bad <= counted, f"{counted} skipped steps were counted, wanted {bad} or more")
        if not sound.any():
            averages = {n: v for n, v in state.items() if v.ndim >= old.ndim}  # the others count
            for name, value in averages.items():
                check(torch.equal(value, now[name]), f"{name} moved without a step")
        if tame and group["retraction"] != "polar":
            check(counted == bad, f"{counted} skipped steps were counted, wanted {bad}: {kind}")
            compare(group, flat(old), new, grad, sound)


def compare(group, old, new, grad, sound):
    """Compare the steps of SGD without momentum at full rank with the formula."""
    rank = min(group["rank"], *old.shape[-2:])
    if group.get("nesterov") is None or group["momentum"] or rank < grad.left.shape[-1]:
        return
    rate = float(unitary_learning_rate(group, old.shape)) * (1 if group["maximize"] else -1)
    left, right = flat(precise(grad.left)), flat(precise(grad.right))
    for i in torch.nonzero(sound).flatten().tolist():
        d = rate * (left[i] @ right[i].mH)
        size = torch.linalg.matrix_norm(d).item()
        if size > 50:
            continue
        expected, _ = rules.stepped(old[i], d, group["retraction"])
        error = (precise(new[i]) - expected).abs().max().item()
        bound = ERROR * eps(new) * (1 + size)
        check(error < bound, f"a step of size {size:.2g} is off by {error:.2g}, above {bound:.2g}")
