"""Models whose weights another library keeps orthogonal, made ours."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from projunn.arguments import of_kind
from projunn.layout import PLAIN
from projunn.manifold import MATRIX_DTYPES, dtype_names, make_unitary
from projunn.noticing import TOLERANCE, OffManifoldWarning, off_manifold
from projunn.selection import Place, names_of, places
from projunn_kernels import private
from projunn_kernels.precision import in_full_precision

_WANTED = (
    "one of torch.nn.utils.parametrizations.orthogonal, geotorch.orthogonal, or a"
    " geoopt.ManifoldParameter on a Stiefel manifold"
)


class _Constraint(NamedTuple):
    """A parameter that another library keeps on a manifold, and why it cannot be converted, if so."""

    place: Place
    refused: str


@in_full_precision
def convert(module: nn.Module, name: str | Iterable[str] = "*") -> nn.Module:
    """Make parameters that other libraries keep orthogonal `UnitaryParameter` s, in place.

        torch.nn.utils.parametrizations.orthogonal    W = Q(X), computed from X in every forward
        geotorch.orthogonal                           likewise
        geoopt.ManifoldParameter                      W itself, on a Stiefel manifold
                              ->  W itself, which the optimizers of `projunn.optim` keep orthogonal

    Each weight is replaced by its polar factor, which differs from it by half of its defect.  So
    ``module`` computes the same function as before: to 1e-6 in float32, after large steps to 1e-5 with
    torch's ``"matrix_exp"`` at n = 512.  The module and its parameters stay the same objects, and the
    names in its ``state_dict`` become plain, ``weight`` in place of
    ``parametrizations.weight.original``.  A weight that was one orthogonal matrix stays one:
    the ``in_proj_weight`` of an attention, say, does not become three.  Make the optimizer afterwards.
    To get plain parameters, call `unconstrain` next.

    Args:
        module: the model.
        name: which of them to convert: a dotted name, ``"encoder.0.weight"``, a pattern,
            ``"encoder.*.weight"`` (`projunn.constrain`), or a list of these.  All by default.

    Returns:
        ``module``.

    Raises:
        ValueError: no parameter is kept orthogonal by one of the three; one that is chosen is kept on
            another manifold (geotorch's and geoopt's sphere, say), has further parametrizations, is
            shared with another module or is not finite.  Nothing has changed then.
        TypeError: ``module`` is no module, ``name`` no string, or a weight is in half precision.

    Warns:
        OffManifoldWarning: a weight was orthogonal to less than 1e-4, and has changed by that.
    """
    of_kind("module", module, nn.Module, "a module")
    names = names_of("name", name)
    every = list(_constraints(module))
    found = [c for c in every if any(fnmatchcase(c.place.full, one) for one in names)]
    if not found:
        known = ", ".join(c.place.full for c in every) or "none"
        is_peft = any(hasattr(inner, "oft_R") for inner in module.modules())
        raise ValueError(
            f"module: in {type(module).__name__} nothing fits {', '.join(map(repr, names))}, wanted"
            f" {_WANTED} (it has: {known}); projunn.constrain makes other weights orthogonal"
            + "; for PEFT's OFT see projunn.nn.finetune and projunn.nn.rotation_from_skew"
            * is_peft
        )
    if refused := [f"{c.place.full!r} {c.refused}" for c in found if c.refused]:
        raise ValueError(
            f"module: cannot convert {'; '.join(refused)}; wanted {_WANTED}; name=... chooses the others"
        )
    values = {c.place: _value(c.place) for c in found}
    far = [(place.full, off_manifold(value)) for place, value in values.items()]
    for place, value in values.items():
        _put_plain(place, value)
        make_unitary(place, PLAIN)
    if said := ", ".join(f"{full} ({defect:.2g})" for full, defect in far if defect is not None):
        warnings.warn(
            f"Before projunn.convert these weights were not orthogonal (‖W^H W - I‖_F / sqrt(n), at most"
            f" {TOLERANCE:g} wanted): {said}. Each is the nearest orthogonal matrix now",
            OffManifoldWarning,
            stacklevel=2,
        )
    return module


def _constraints(module: nn.Module) -> Iterator[_Constraint]:
    """The parameters in a module that torch, geotorch or geoopt keep on a manifold."""
    shared: dict[int, int] = {}
    for place in places(module):
        key = id(place.owner._parameters[place.name])
        shared[key] = shared.get(key, 0) + 1
    for prefix, owner in module.named_modules():
        before = f"{prefix}." if prefix else ""
        if parametrize.is_parametrized(owner):
            for name, steps in owner.parametrizations.items():  # type: ignore[union-attr, operator]
                kinds = [kind for kind in map(_kind, steps) if kind]
                if kinds:
                    original = getattr(steps, "original", None)
                    alone = shared.get(id(original), 0) == 1
                    refused = _why_not(kinds, len(steps), original, alone)
                    yield _Constraint(Place(owner, name, before + name), refused)
        for name, parameter in owner._parameters.items():
            kind = _manifold(parameter)
            if kind:
                yield _Constraint(
                    Place(owner, name, before + name), _why_not([kind], 1, parameter, alone=True)
                )


def _kind(parametrization: nn.Module) -> str:
    """Who keeps a tensor orthogonal by this: "torch", "geotorch"; or another manifold; or nothing."""
    if private.is_orthogonal_parametrization(parametrization):
        return "torch"
    geotorch: Any = sys.modules.get("geotorch")
    if geotorch is None or type(parametrization).__module__.split(".")[0] != "geotorch":
        return ""
    is_frame = isinstance(parametrization, geotorch.SO)
    if is_frame and not isinstance(parametrization, geotorch.Grassmannian):
        return "geotorch"
    return f"is kept by geotorch.{type(parametrization).__name__}"


def _manifold(parameter: Tensor | None) -> str:
    """What geoopt keeps a parameter on: "geoopt" for Stiefel, another manifold, or nothing."""
    geoopt: Any = sys.modules.get("geoopt")
    if geoopt is None or not isinstance(parameter, geoopt.ManifoldParameter):
        return ""
    manifold = parameter.manifold
    while isinstance(manifold, geoopt.Scaled):
        manifold = manifold.base
    if isinstance(manifold, geoopt.Stiefel):
        return "geoopt"
    plain = isinstance(manifold, geoopt.Euclidean)
    return "" if plain else f"is kept by geoopt on {type(manifold).__name__}"


def _why_not(kinds: list[str], steps: int, original: Tensor | None, alone: bool) -> str:
    """Why a parameter cannot be converted; nothing if it can."""
    if other := next((kind for kind in kinds if kind.startswith("is ")), ""):
        return f"{other}, which is not all orthogonal matrices"
    if steps > 1:
        return f"has {steps} parametrizations, of which one is orthogonal"
    if not isinstance(original, nn.Parameter):
        return "is no parameter"
    if not alone:
        return "is shared with another module, which would change"
    if original.is_complex() and kinds != ["torch"]:
        return f"is complex, and {kinds[0]} transposes without conjugation"
    return ""


@torch.no_grad()
def _value(place: Place) -> Tensor:
    """The matrix that a parametrization, or geoopt, makes of a constrained tensor now."""
    value: Tensor = getattr(place.owner, place.name).detach()
    if value.dtype not in MATRIX_DTYPES:
        raise TypeError(f"module: {place.full!r} is {value.dtype}; wanted one of {dtype_names()}")
    if not value.isfinite().all():
        raise ValueError(f"module: {place.full!r} has entries that are not finite")
    return value


def _put_plain(place: Place, value: Tensor) -> None:
    """Leaves an ``nn.Parameter`` in the slot, the same object as before, of whatever kept it there."""
    owner, name = place.owner, place.name
    if name in owner._parameters:  # geoopt's
        parameter: Any = owner._parameters[name]
        parameter.__class__ = nn.Parameter
        del parameter.manifold
        return
    # Copies of a module share its parametrized class, from which PyTorch takes the property away.
    shared = type(owner)
    own = {n: v for n, v in vars(shared).items() if n not in ("__dict__", "__weakref__")}
    owner.__class__ = type(shared.__name__, shared.__bases__, own)
    parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
    parameter = owner._parameters[name]
    parameter.grad = None  # of what it was parametrized by
