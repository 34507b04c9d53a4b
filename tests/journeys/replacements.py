"""Other tensors in the place of a parameter."""

import contextlib
import copy
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parametrizations, parametrize, prune

import projunn
from projunn import matrix_view, unitarity_defect, unitary_parameters
from tests.dense import defect
from tests.journeys.layers import NEAR, input_of, run, same, trains


def assigned(layer):
    module = layer.make()
    other = copy.deepcopy(module)
    setattr(other, layer.name, nn.Parameter(getattr(other, layer.name).detach().clone()))
    assert isinstance(getattr(other, layer.name), projunn.UnitaryParameter)
    same(layer, other, module)
    trains(layer, other)


def called_functionally(layer):
    module = layer.make()
    values = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    x = input_of(layer, module)
    result = functional_call(module, values, (x,))
    result = result[0] if isinstance(result, tuple) else result
    torch.testing.assert_close(result, run(module, x))
    found = torch.autograd.grad(result.abs().square().sum(), list(values.values()))
    run(module, x).abs().square().sum().backward()
    for gradient, (name, p) in zip(found, module.named_parameters(), strict=True):
        assert type(gradient) is torch.Tensor, name
        if not isinstance(p.grad, projunn.FactoredTensor):
            torch.testing.assert_close(gradient, p.grad, atol=1e-4, rtol=1e-4)
    trains(layer, module)


def stacked(layer):
    """An ensemble computes what its members do, and an optimizer of the stacks keeps them unitary."""
    modules = [layer.make() for _ in range(3)]
    stacks, _ = stack_module_state(modules)
    x = input_of(layer, modules[0])

    def member(i):
        result = functional_call(modules[0], {name: p[i] for name, p in stacks.items()}, (x,))
        return result[0] if isinstance(result, tuple) else result

    for i, module in enumerate(modules):
        torch.testing.assert_close(member(i), run(module, x))
    optimizer = projunn.optim.SGD(list(stacks.values()), lr=3.0, momentum=0.9)
    known = {n: p for n, p in modules[0].named_parameters() if isinstance(p, projunn.UnitaryParameter)}
    marks = {n: p for n, p in stacks.items() if isinstance(p, projunn.UnitaryParameter)}
    assert [(n, p.pairs, p.blocks) for n, p in marks.items()] == [
        (n, p.pairs, p.blocks) for n, p in known.items()
    ]
    before, target = {n: p.detach().clone() for n, p in marks.items()}, torch.randn_like(member(0))
    for _ in range(3):
        optimizer.zero_grad()
        sum((member(i) - target).abs().square().mean() for i in range(3)).backward()
        optimizer.step()
    assert optimizer.skipped_steps() == 0
    for name, p in marks.items():
        assert (p.detach() - before[name]).abs().flatten(1).amax(1).min() > 1e-4, "one does not move"
        assert defect(matrix_view(p).detach()) < NEAR
        assert unitarity_defect(p.detach()).max() < NEAR


def pruned(layer):
    module = layer.make()
    other = copy.deepcopy(module)
    prune.l1_unstructured(other, layer.name, amount=3)
    optimizer = projunn.optim.SGD(other.parameters(), lr=1.0)
    run(other, input_of(layer, other)).abs().square().sum().backward()
    optimizer.step()
    mask = getattr(other, f"{layer.name}_mask") == 0
    assert int(mask.sum()) == 3
    assert not getattr(other, layer.name)[mask].any()
    beneath = getattr(other, f"{layer.name}_orig")
    assert defect(matrix_view(beneath).detach()) < NEAR
    prune.remove(other, layer.name)
    assert isinstance(getattr(other, layer.name), projunn.UnitaryParameter)
    projunn.project_(other)
    trains(layer, other)


def normalised_spectrally(layer):
    module = layer.make()
    other = parametrizations.spectral_norm(copy.deepcopy(module), layer.name)
    x = input_of(layer, other)
    run(other, x)
    optimizer = projunn.optim.SGD(other.parameters(), lr=1.0)
    run(other, x).abs().square().sum().backward()
    optimizer.step()
    beneath = other.parametrizations[layer.name].original
    assert defect(matrix_view(beneath).detach()) < NEAR


class _Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(layer):
    module = layer.make()
    other = copy.deepcopy(module)
    parametrize.register_parametrization(other, layer.name, _Doubled(), unsafe=True)
    x = input_of(layer, other)
    doubled = copy.deepcopy(module)
    with torch.no_grad():
        getattr(doubled, layer.name).mul_(2)
    torch.testing.assert_close(run(other, x), run(doubled, x))
    optimizer = projunn.optim.SGD(other.parameters(), lr=0.01)
    run(other, x).abs().square().sum().backward()
    optimizer.step()
    assert defect(matrix_view(other.parametrizations[layer.name].original).detach()) < NEAR
    parametrize.remove_parametrizations(other, layer.name, leave_parametrized=False)
    trains(layer, other)


def normalised_by_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer.make(), layer.name)


@contextlib.contextmanager
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(layer):
    """By FSDP2, in a world of one process."""
    with one_process():
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        module = fully_shard(layer.make(), mesh=mesh)
        projunn.optim.SGD(module.parameters(), lr=0.1)


def flattened(layer):
    """By FSDP1, as it does by default; the layer is inside of what is wrapped."""
    with one_process():
        module = FullyShardedDataParallel(nn.Sequential(layer.make()), device_id=torch.device("cpu"))
        projunn.optim.SGD(module.parameters(), lr=0.1)


def flattened_with_its_own_parameters(layer):
    with one_process():
        module = layer.make()
        wrapped = FullyShardedDataParallel(module, use_orig_params=True, device_id=torch.device("cpu"))
        optimizer = projunn.optim.SGD(wrapped.parameters(), lr=1.0)
        run(wrapped, torch.randn(layer.shape)).abs().square().sum().backward()
        optimizer.step()
        assert "basis" in optimizer.state[unitary_parameters(wrapped)[0]]
        assert all(defect(matrix_view(p).detach()) < NEAR for p in unitary_parameters(wrapped))


def left_out_of_sharding(layer):
    with one_process():
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        module = layer.make()
        known = unitary_parameters(module)
        module = fully_shard(module, mesh=mesh, ignored_params=set(known))
        optimizer = projunn.optim.SGD(module.parameters(), lr=1.0)
        run(module, torch.randn(layer.shape)).abs().square().sum().backward()
        optimizer.step()
        assert all(defect(matrix_view(p).detach()) < NEAR for p in known)
