"""PyTorch's own layers in the place of ours, for programs that run a model without this library."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

from projunn.arguments import of_kind
from projunn.manifold import unconstrain
from projunn.nn import (
    BlockUnitaryLinear,
    LocalUnitaryConv1d,
    LocalUnitaryConv2d,
    LocalUnitaryConv3d,
    OrthogonalFinetuning,
    UnitaryConv1d,
    UnitaryConv2d,
    UnitaryConv3d,
    UnitaryConvTranspose1d,
    UnitaryConvTranspose2d,
    UnitaryConvTranspose3d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
)
from projunn.nn.module import UnitaryModule
from projunn_kernels.precision import in_full_precision


@torch.no_grad()
@in_full_precision
def to_plain(module: nn.Module) -> nn.Module:
    """Puts PyTorch's own layers in the place of ours, with the same output, for deployment.

        UnitaryLinear            nn.Linear                                            the same weight
        BlockUnitaryLinear       nn.Linear    W = B_f P ... B_2 P B_1, dense
        UnitaryConv, -Transpose  a circular padding and an nn.Conv, -Transpose        the filter, dense
        LocalUnitaryConv         a padding and an nn.Conv                             the kernel
        UnitaryRNN, -Cell        nn.RNN, nn.RNNCell, for "tanh" and "relu", real      the same weights
        OrthogonalFinetuning     nn.Linear                                            W R^T, as by merge

    All other unitary parameters become plain ones, as by `projunn.unconstrain`.  Outputs agree to the
    rounding of the dtype, and shared parameters stay shared.  PyTorch's complex layers take complex
    input alone, where ours take reals too: give those as ``x.to(torch.complex64)``.  A convolution costs
    as much as its filter is large, which the Fourier transform spared it.  A local one with a stride
    begins with ``nn.PixelUnshuffle``, which takes only images that the stride divides.  ``nn.RNN`` has
    no ``resets``.  Hooks of replaced layers do not come along.

    Args:
        module: the model, which is changed in place (pass ``copy.deepcopy(model)`` to keep it), or one
            of our layers.

    Returns:
        ``module``, or, if it is itself one of our layers, the layer that takes its place.

    Raises:
        ValueError: a layer for which there is none: a recurrent one that is complex, or has ``modrelu``
            or no nonlinearity, a local convolution of sequences or volumes with a stride, or with
            another one for each axis, or a class of your own; nothing has changed then.
        TypeError: ``module`` is no module.
    """
    of_kind("module", module, nn.Module, "a module")
    ours = {name: inner for name, inner in module.named_modules() if isinstance(inner, UnitaryModule)}
    new: dict[int, nn.Module] = {}
    for name, layer in ours.items():
        for hook in layer._forward_pre_hooks.values():  # weights of the last forward may be old
            if isinstance(hook, BasePruningMethod | SpectralNorm):
                hook(layer, ())
        make = _PLAIN.get(type(layer))
        plain = None if make is None else make(layer)
        if plain is None:
            recurrent = make is _recurrent  # itself, and no class derived from it
            wanted = " wanted nonlinearity='tanh' or 'relu' and real numbers;" if recurrent else ""
            if make is _local_convolution:
                wanted = " wanted a stride of 1 or, for images, the same stride along both axes;"
            raise ValueError(
                f"module: there is no plain layer for {name or 'module'!r}, {layer};{wanted}"
                " projunn.unconstrain(module) makes plain parameters and keeps the layers"
            )
        new[id(layer)] = plain.train(layer.training)
    _tie([(layer, new[id(layer)]) for layer in ours.values()], module)
    for parent in [*module.modules()]:
        for name, child in parent._modules.items():
            if id(child) in new:
                parent._modules[name] = new[id(child)]
    return unconstrain(new.get(id(module), module))


def _tie(pairs: list[tuple[nn.Module, nn.Module]], module: nn.Module) -> None:
    """Shares parameters of plain layers whose originals are shared.

    Args:
        pairs: layers of ours, and those that take their places.
        module: the model that they are in.
    """
    inside = {id(inner) for layer, _ in pairs for inner in layer.modules()}
    stay = (m for m in module.modules() if id(m) not in inside)
    known: dict[Any, Tensor] = {(None, (id(p),)): p for m in stay for p in m.parameters(recurse=False)}
    for layer, plain in pairs:
        for path, new in [*plain.named_parameters()]:
            owner, _, name = path.rpartition(".")
            made_of = [
                p
                for own, p in layer.named_parameters()
                if own == name or (name == "weight" and not own.endswith("bias"))
            ]
            same = len(made_of) == 1 and made_of[0].shape == new.shape
            key = None if same else type(layer), tuple(map(id, made_of))
            first = known.setdefault(key, new) if made_of else new
            if first is not new and torch.equal(first, new):
                setattr(plain.get_submodule(owner), name, first)


def _linear(layer: Any) -> nn.Module:
    return _dense(layer, layer.matrix)


def _of_blocks(layer: Any) -> nn.Module:
    identity = torch.eye(layer.num_blocks * layer.block_size, **_kind(layer))
    image = layer(identity)
    offset = 0 if layer.bias is None else layer._numbers(layer.bias)
    return _dense(layer, (image - offset).mT)


def _dense(layer: Any, matrix: Tensor) -> nn.Module:
    m, n = matrix.shape
    plain = nn.Linear(n, m, layer.bias is not None, device=matrix.device, dtype=matrix.dtype)
    _fill(plain, layer, matrix, layer.weight)
    return plain


def _convolution(layer: Any) -> nn.Module:
    plain: nn.Module = layer.to_plain()
    inner: Any = [m for m in plain.modules() if isinstance(m, nn.modules.conv._ConvNd)][-1]
    inner.weight.requires_grad_(layer.weight.requires_grad)
    if layer.bias is not None:
        inner.bias.requires_grad_(layer.bias.requires_grad)
    return plain


def _local_convolution(layer: Any) -> nn.Module | None:
    strides = set(layer.stride)
    return _convolution(layer) if strides == {1} or (layer.axes == 2 and len(strides) == 1) else None


def _recurrent(layer: Any) -> nn.Module | None:
    if layer.is_complex or layer.nonlinearity not in ("tanh", "relu"):
        return None
    options = {"nonlinearity": layer.nonlinearity, **_kind(layer)}
    if isinstance(layer, UnitaryRNNCell):
        plain: nn.Module = nn.RNNCell(layer.input_size, layer.hidden_size, layer.bias, **options)
    else:
        plain = nn.RNN(
            layer.input_size,
            layer.hidden_size,
            layer.num_layers,
            bias=layer.bias,
            batch_first=layer.batch_first,
            dropout=layer.dropout,
            bidirectional=layer.bidirectional,
            **options,
        )
    for name, parameter in plain.named_parameters():
        own = getattr(layer, name, None)
        if own is None:  # the second of the two biases of PyTorch's layers
            parameter.zero_()
        else:
            parameter.copy_(own)
            parameter.requires_grad_(own.requires_grad)
    return plain


def _fill(plain: Any, layer: Any, weight: Tensor, stored: Tensor) -> None:
    plain.weight.copy_(weight)
    plain.weight.requires_grad_(stored.requires_grad)
    if layer.bias is not None:
        plain.bias.copy_(layer._numbers(layer.bias))
        plain.bias.requires_grad_(layer.bias.requires_grad)


def _kind(layer: Any) -> dict[str, Any]:
    """The device and the dtype of a layer's numbers."""
    stored = next(iter(layer.parameters()))
    dtype = stored.dtype.to_complex() if layer.is_complex else stored.dtype
    return {"device": stored.device, "dtype": dtype}


_PLAIN: dict[type, Callable[[Any], nn.Module | None]] = {
    UnitaryLinear: _linear,
    BlockUnitaryLinear: _of_blocks,
    LocalUnitaryConv1d: _local_convolution,
    LocalUnitaryConv2d: _local_convolution,
    LocalUnitaryConv3d: _local_convolution,
    OrthogonalFinetuning: OrthogonalFinetuning.merge,
    UnitaryConv1d: _convolution,
    UnitaryConv2d: _convolution,
    UnitaryConv3d: _convolution,
    UnitaryConvTranspose1d: _convolution,
    UnitaryConvTranspose2d: _convolution,
    UnitaryConvTranspose3d: _convolution,
    UnitaryRNN: _recurrent,
    UnitaryRNNCell: _recurrent,
}
