"""Unitary parameters, and the modules that know of them.

The tensor in a module's slot does not last: conversions, loading, sharding and offloading put other ones
in its place.  So a module is told which of its parameters are unitary, and in which layout, when it gets
one (`Declaration`), and whoever needs to know asks `recognise`, which marks what sits in the slots now.

    module.weight = UnitaryParameter(...)     declares the slot "weight" of the module
    module.weight = nn.Parameter(...)         is marked as the slot was declared
    recognise()                               marks what came into slots in other ways: optimizers and
                                              diagnostics call it before they read a mark

Tensors that share memory with a unitary parameter (``.data``, ``.detach()``, the entries of
``state_dict()``) are read in the layout of that memory: `layout_of`.
"""

import copy
import weakref
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from projunn.arguments import tensor
from projunn.factored import FactoredTensor
from projunn.layout import PLAIN, Layout, forget_memory, remember, remembered
from projunn.noticing import NO_PATHS, off_manifold, paths_of, say, say_cut
from projunn.shards import flattened_into, is_sharded, own_matrices, own_part
from projunn.sketches import following
from projunn.slots import Slot
from projunn.swapping import converter
from projunn_kernels import private


class _Marked(type(nn.Parameter)):  # type: ignore[misc]
    """Parameters of classes that cannot be changed (DTensor, fake tensors) are marked by attributes."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return type(instance) is cls or (
            isinstance(instance, Tensor) and getattr(instance, "blocks", None) is not None
        )


class UnitaryParameter(nn.Parameter, metaclass=_Marked):
    """A parameter whose matrices the optimizers of `projunn.optim` keep unitary.

    Real matrices are kept orthogonal, rectangular ones semi-orthogonal: their rows or columns,
    whichever are fewer, stay orthonormal.  A module that gets one as an attribute remembers it: whatever
    tensor a conversion, ``load_state_dict``, sharding or an assignment puts in its place is a unitary
    parameter again, until `projunn.unconstrain`.  ``torch.load`` reads a saved ``state_dict`` by
    default; a whole saved module or parameter needs ``weights_only=False``.

    Args:
        data: the matrices, (*batch, m, n), real or complex.  They are taken as they are: initialise them
            with `projunn.init`, or project an existing parameter with `projunn.constrain`.
        requires_grad: as in ``nn.Parameter``.
        pairs: ``data`` is (*batch, m, n, 2) and real, with real and imaginary parts on the last axis.
        blocks: ``data`` is (*batch, blocks m, n), with so many matrices stacked along the rows.  By
            default data that shares memory with a unitary parameter has its layout.
        singletons: ``data`` is (*batch, m, n, 1, ..), with so many axes of size 1 after the matrix, as
            the filter of a 1 x 1 convolution has.
        sketch: see below.

    Attributes:
        pairs, blocks, singletons: as given.
        sketch: the factors that the next sketch of a gradient starts from, if the parameter belongs to a
            layer with ``sketch_rank``; its gradients are then of the class `projunn.FactoredTensor`.
            Otherwise None.
    """

    pairs: bool
    blocks: int
    singletons: int
    sketch: FactoredTensor | None

    def __new__(
        cls,
        data: Tensor,
        requires_grad: bool = True,
        *,
        pairs: bool | None = None,
        blocks: int | None = None,
        singletons: int | None = None,
        sketch: FactoredTensor | None = None,
    ) -> "UnitaryParameter":
        if pairs is None and blocks is None and singletons is None:
            pairs, blocks, singletons = layout_of(tensor("data", data))
        plain = data.data if type(data) is cls else data  # nn.Parameter takes its own class only
        self = super().__new__(cls, plain, requires_grad)
        return mark(self, Layout(pairs or False, blocks or 1, singletons or 0), sketch)

    def __deepcopy__(self, memo: dict[int, Any]) -> "UnitaryParameter":
        if id(self) not in memo:
            data = self.data.clone(memory_format=torch.preserve_format)
            sketch = copy.deepcopy(self.sketch, memo)
            kind = *_layout(self)[:2], sketch, self.singletons
            memo[id(self)] = rebuild(data, self.requires_grad, *kind)  # without gradient, as PyTorch's
        return cast(UnitaryParameter, memo[id(self)])

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        kind = self.pairs, self.blocks, self.sketch, self.singletons
        return rebuild, (self.data, self.requires_grad, *kind)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Unitary parameter containing:\n{self.data!r}"


for _name in ("to", "type", "cpu", "cuda", "float", "double", "half", "bfloat16", "share_memory_"):
    setattr(UnitaryParameter, _name, converter(_name))
private.let_proxies_take(UnitaryParameter)


def is_unitary(parameter: Tensor) -> TypeGuard[UnitaryParameter]:
    """``isinstance(parameter, UnitaryParameter)``, in a third of the time for plain parameters."""
    kind = type(parameter)
    return kind is UnitaryParameter or (
        kind is not nn.Parameter and isinstance(parameter, UnitaryParameter)
    )


def rebuild(
    data: Tensor,
    requires_grad: bool,
    pairs: bool,
    blocks: int,
    sketch: FactoredTensor | None = None,
    singletons: int = 0,
) -> UnitaryParameter:
    return UnitaryParameter(
        data, requires_grad, pairs=pairs, blocks=blocks, singletons=singletons, sketch=sketch
    )


def mark(parameter: Tensor, layout: Layout, sketch: FactoredTensor | None = None) -> UnitaryParameter:
    """Makes a unitary parameter of an ``nn.Parameter`` or a plain tensor, in place."""
    if type(parameter) in (nn.Parameter, Tensor):
        parameter.__class__ = UnitaryParameter
    marked = cast(UnitaryParameter, parameter)
    marked.pairs, marked.blocks, marked.singletons = layout
    marked.sketch = sketch
    _remember(marked)
    _watch()
    return marked


def unmark(parameter: UnitaryParameter) -> None:
    """The inverse of `mark`."""
    if type(parameter) is UnitaryParameter or is_sharded(parameter):
        forget_memory(own_part(parameter))
    for name in ("pairs", "blocks", "singletons", "sketch"):
        delattr(parameter, name)
    if type(parameter) is UnitaryParameter:
        parameter.__class__ = nn.Parameter  # type: ignore[assignment]


class Declaration:
    """The unitary parameters of one module, by name; it goes where the module's attributes go.

    The module is held weakly, so that it is freed without the help of the garbage collector.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self.slots: dict[str, Slot] = {}
        self.path = ""  # of the module in the one whose ``load_state_dict`` is called, with a dot
        _declarations[id(self)] = self

    @property
    def module(self) -> nn.Module | None:
        return self._module()

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "slots": self.slots}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._module = weakref.ref(state["module"])
        self.slots, self.path = state["slots"], ""
        for slot in self.slots.values():
            slot.kept = False  # no optimizer knows the copy yet
        _declarations[id(self)] = self
        _watch()

    def restore(self) -> None:
        """Marks what sits in the slots now."""
        module = self.module
        for name, slot in self.slots.copy().items():
            parameter = None if module is None else module._parameters.get(name)
            if isinstance(parameter, nn.Parameter):
                mark_as(parameter, slot)

    def held(self) -> list[tuple[str, Slot, UnitaryParameter]]:
        """The slots that hold a unitary parameter, with their names."""
        module = self.module
        every = () if module is None else self.slots.copy().items()
        pairs = ((name, slot, module._parameters.get(name)) for name, slot in every)  # type: ignore[union-attr]
        return [(name, slot, p) for name, slot, p in pairs if isinstance(p, UnitaryParameter)]


# How many plain parameters were made unitary: steps that were compiled before are to be traced anew.
constrained = ["0"]
_ATTRIBUTE, _STEPS = "_unitary_slots", "_steps_beside_unitary"
_declarations: "weakref.WeakValueDictionary[int, Declaration]" = weakref.WeakValueDictionary()
_unclear: set[torch.Size] = set()  # of parameters whose shape alone does not tell their matrices


def declaration(module: nn.Module) -> Declaration | None:
    """What a module knows of its unitary parameters; None if it has none."""
    found: Declaration | None = module.__dict__.get(_ATTRIBUTE)
    return found


def declare(module: nn.Module, name: str, parameter: UnitaryParameter) -> None:
    """Tells a module that its parameter ``name`` is unitary."""
    found = declaration(module)
    if found is None:
        found = module.__dict__[_ATTRIBUTE] = Declaration(module)
        module.register_load_state_dict_pre_hook(_before_load)
        module.register_load_state_dict_post_hook(_after_load)
    pairs, blocks, singletons = layout = _layout(parameter)
    found.slots[name] = Slot(pairs, blocks, parameter.sketch, singletons=singletons)
    if layout != PLAIN:
        _unclear.add(parameter.shape)


def forget(module: nn.Module) -> None:
    """The inverse of `declare`, for all parameters of a module."""
    if (found := module.__dict__.pop(_ATTRIBUTE, None)) is not None:
        found.slots.clear()


def declarations() -> list[Declaration]:
    """The declarations of all modules that live, in a new list: other threads may make modules."""
    return [found for known in _declarations.valuerefs() if (found := known()) is not None]


def recognise() -> None:
    """Marks whatever sits in the slots of all modules now."""
    for found in declarations():
        found.restore()


def known_parameters(paths: Mapping[int, str] = NO_PATHS) -> dict[int, tuple[str, Slot]]:
    """The names and slots of the unitary parameters of all modules, by ``id``."""
    return {
        id(p): (f"{paths.get(id(p), name)} of {type(found.module).__name__}", slot)
        for found in declarations()
        for name, slot, p in found.held()
    }


def name_of(parameter: Tensor) -> str:
    """The name of a parameter for a message."""
    known = known_parameters().get(id(parameter))
    return known[0] if known is not None else f"a parameter of shape {tuple(parameter.shape)}"


def notice(
    parameters: list[UnitaryParameter],
    event: str,
    paths: Mapping[int, str] = NO_PATHS,
    *,
    kept: bool = False,
    moved: bool = False,
    mended: bool = False,
) -> None:
    """Warns of those parameters that are off the manifold, once each until they are back.

    Args:
        event: what has just happened to them, the start of a sentence: "After load_state_dict".
        paths: their dotted names, where these are known, by ``id``.
        kept: whether an optimizer of ours steps them from now on.
        moved: whether another one has just stepped them: those that are cut through are named too.
        mended: whether they are brought back at once.
    """
    known, found, cut = known_parameters(paths) if parameters else {}, [], []
    for parameter in parameters:
        if type(parameter) is not UnitaryParameter and not is_sharded(parameter):  # without numbers
            continue
        unknown = f"a parameter of shape {tuple(parameter.shape)}", Slot(False, 1, None)
        name, slot = known.get(id(parameter), unknown)
        if (matrices := own_matrices(parameter)) is None:
            if moved and not slot.said:
                cut.append(name)
                slot.said = True
            continue
        defect = off_manifold(matrices)
        if defect is not None and not slot.said:
            found.append((name, defect))
        slot.said, slot.kept = defect is not None and not mended, slot.kept or kept
    say(found, event)
    say_cut(cut, event)


def _remember(p: UnitaryParameter) -> None:
    has_memory = type(p) is UnitaryParameter or is_sharded(p)
    if _layout(p) != PLAIN and has_memory and not private.is_fake(own_part(p)):
        remember(own_part(p), _layout(p))
        _unclear.add(p.shape)


def _layout(p: UnitaryParameter) -> Layout:
    return Layout(p.pairs, p.blocks, p.singletons)


def layout_of(tensor: Tensor) -> Layout:
    """The layout of a tensor: of a unitary parameter, or of one that it shares memory with.

    Other tensors are real or complex matrices as they are.  So are all plain tensors in a program that
    is traced, where there is no memory to compare.
    """
    if is_sharded(tensor) and not torch.compiler.is_compiling():
        recognise()
    if getattr(tensor, "blocks", None) is not None:  # `isinstance` is not always right in a trace
        known = cast(UnitaryParameter, tensor)
        if not torch.compiler.is_compiling() and _layout(known) == PLAIN and known.shape in _unclear:
            recognise()  # one that was rebuilt by its class is marked by the module it is in
        return _layout(known)
    if torch.compiler.is_compiling():
        return PLAIN
    tensor = own_part(tensor)
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return PLAIN
    found = remembered(tensor)
    if found is None and tensor.shape in _unclear:  # a conversion may have moved the memory
        recognise()
        found = remembered(tensor)
    return PLAIN if found is None else found


def mark_as(parameter: nn.Parameter, slot: Slot) -> None:
    """Marks a parameter as its slot says; the sketch follows its device and dtype."""
    sketch = parameter.sketch if isinstance(parameter, UnitaryParameter) else None
    sketch = slot.sketch if sketch is None else sketch
    slot.sketch = None if sketch is None else following(sketch, parameter)
    mark(parameter, Layout(slot.pairs, slot.blocks, slot.singletons), slot.sketch)


def _registered(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """PyTorch calls this where a module gets a parameter.

    Raises:
        TypeError: it is the length that ``weight_norm`` makes of a unitary one, which it has deleted.
    """
    found = declaration(module)
    slot = None if found is None else found.slots.get(name)
    own = name.removesuffix("_g")
    if found is not None and own != name and own in found.slots and own not in module._parameters:
        raise TypeError(
            f"name: {own!r} of {type(module).__name__} is unitary, and torch.nn.utils.weight_norm puts"
            " plain parameters in its place; wanted a plain parameter. Build the layer anew, and without"
            " weight_norm, or call projunn.unconstrain(module) first"
        )
    if isinstance(parameter, UnitaryParameter) and (slot is None or _layout(parameter) != PLAIN):
        declare(module, name, parameter)
        return
    if slot is not None:
        mark_as(parameter, slot)


def _stepped(optimizer: Any, *_: Any) -> None:
    """PyTorch calls this after a step of any optimizer.

    After steps 1, 2, 4, 8 and so on it looks at the unitary parameters of those that are not ours.  They
    may be kept well all the same, by an optimizer of ours inside.
    """
    if torch.compiler.is_compiling():
        return
    own = optimizer.__dict__
    steps = own[_STEPS] = own.get(_STEPS, 0) + 1
    if steps & (steps - 1) == 0 and not getattr(optimizer, "keeps_unitary", False):
        recognise()  # FSDP2 puts tensors of its own into slots
        every = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        event = f"After a step of {type(optimizer).__name__}, which does not keep them unitary,"
        unitary = [p for p in every if isinstance(p, UnitaryParameter)]
        notice(unitary, event, paths_of(optimizer.param_groups), moved=True)
        say_cut(flattened_into(every, declarations()), event)


@cache
def _watch() -> None:
    """From the first unitary parameter on, PyTorch tells of new parameters of modules, and of steps."""
    register_module_parameter_registration_hook(_registered)
    register_optimizer_step_post_hook(_stepped)


def _before_load(module: nn.Module, _: object, prefix: str, *__: object) -> None:
    found = declaration(module)
    if found is not None:
        found.path = prefix


def _after_load(module: nn.Module, _: object) -> None:
    found = declaration(module)
    if found is not None:
        found.restore()
        paths = {id(p): found.path + name for name, _, p in found.held()}
        notice([p for _, _, p in found.held()], "After load_state_dict", paths)
