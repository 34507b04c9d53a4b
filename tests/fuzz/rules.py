"""The rules of the optimizers in float64, one matrix at a time: what a step must be."""

import torch

from tests.dense import polar, precise, unitary_factor


def direction(rule, group, gradient, averages, count):
    """The direction of a rule, from the averages before the step.

    Args:
        gradient: of one matrix, finite.
        averages: those of the matrix, by their names in the state.
        count: steps of this matrix that were taken before.
    """
    g = precise(gradient)
    old = {name: precise(value) for name, value in averages.items()}
    squares = (g * g.conj()).real
    if rule == "SGD":
        mu = group["momentum"]
        if not mu:
            return g
        buffer = mu * old["momentum_buffer"] + (1 if count == 0 else 1 - group["dampening"]) * g
        return g + mu * buffer if group["nesterov"] else buffer
    if rule == "RMSprop":
        alpha, mu = group["alpha"], group["momentum"]
        average = alpha * old["square_avg"] + (1 - alpha) * squares
        if group["centered"]:
            mean = alpha * old["grad_avg"] + (1 - alpha) * g
            average = (average - (mean * mean.conj()).real).clamp_min(0)
        found = g / (average.sqrt() + group["eps"])
        return mu * old["momentum_buffer"] + found if mu else found
    beta1, beta2 = group["betas"]
    if rule == "Lion":
        return torch.sgn(beta1 * old["exp_avg"] + (1 - beta1) * g)
    mean = beta1 * old["exp_avg"] + (1 - beta1) * g
    average = beta2 * old["exp_avg_sq"] + (1 - beta2) * squares
    if group["amsgrad"]:
        average = torch.maximum(average, old["max_exp_avg_sq"])
    t = count + 1
    spread = (average / (1 - beta2**t)).sqrt() + group["eps"]
    return mean / (1 - beta1**t) / spread


def truncated(matrix, rank):
    """The best approximation of a rank, and by what factor the next singular value is smaller."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    if rank >= len(s):
        return matrix, 0.0
    ratio = (s[rank] / s[rank - 1].clamp_min(1e-300)).item()
    return (u[:, :rank] * s[:rank].to(u.dtype)) @ vh[:rank], ratio


def stepped(weight, step, retraction, tangent=False):
    """The retraction of W + D, and the smallest singular value that decides it, at most 1.

    With ``tangent``, D is the tangent part W A of the step, for square matrices.
    """
    w = precise(weight)
    tall = w.shape[-2] > w.shape[-1]
    e = w @ step.mH if tall else w.mH @ step
    if tangent:
        e = (e - e.mH) / 2
    smallest = 1.0
    if retraction == "polar":
        shifted = torch.eye(len(e), dtype=e.dtype) + e
        smallest = min(1.0, torch.linalg.svdvals(shifted)[-1].item())
        return (w @ polar(shifted) if not tall else polar(shifted).mH @ w), smallest
    factor = unitary_factor(e[None], retraction)[0]
    return (factor.mH @ w if tall else w @ factor), smallest
