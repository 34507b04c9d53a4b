"""What changes nothing: copies, files, conversions to and fro, looks, and throwaway objects.

Each is a function of a `Training`, which it may give other objects of the same numbers, and of a
`Draw`.
"""

import copy
import io
import pickle
import warnings

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import projunn
from projunn import optim
from tests.fuzz.checks import check
from tests.fuzz.trainings.nets import Chosen
from tests.journeys.conversions import future


def deepcopied(training, draw):
    training.model, training.optimizer = copy.deepcopy((training.model, training.optimizer))


def pickled(training, draw):
    both = training.model, training.optimizer
    training.model, training.optimizer = pickle.loads(pickle.dumps(both))


def saved_whole(training, draw):
    both = training.model, training.optimizer
    training.model, training.optimizer = saved(both, weights_only=False)


def saved(what, weights_only=True):
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def reloaded(training, draw):
    """Loads its own state."""
    if draw.unnamed((True, False)):
        training.model.load_state_dict(training.model.state_dict())
    training.optimizer.load_state_dict(training.optimizer.state_dict())


def loaded(training, draw):
    """Loads the state into new objects, in either order, perhaps twice."""
    files = training.model.state_dict(), training.optimizer.state_dict()
    files = saved(files) if draw.unnamed((True, False)) else copy.deepcopy(files)
    model = training.new_model()
    optimizer = training.new_optimizer(model)
    order = draw.unnamed(((0, 1), (1, 0), (0, 1, 0, 1), (0, 1, 1), (1, 0, 1)))
    for which in order:
        (model, optimizer)[which].load_state_dict(files[which])
    take(training, model, optimizer)


def assigned(training, draw):
    """The tensors of the file become those of the model, of one on the meta device perhaps."""
    file = training.model.state_dict()
    file = saved(file) if draw.unnamed((True, False)) else copy.deepcopy(file)
    with torch.device(draw.unnamed(("cpu", "meta"))):
        model = training.new_model()
    model.load_state_dict(file, assign=True)
    training.tie(model)
    take(training, model, resumed(training, model))


def from_meta(training, draw):
    with torch.device("meta"):
        model = training.new_model()
    model.to_empty(device="cpu")
    training.tie(model)
    model.load_state_dict(training.model.state_dict())
    take(training, model, resumed(training, model))


def resumed(training, model):
    """A new optimizer of a model with the state of the present one."""
    optimizer = training.new_optimizer(model)
    optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    return optimizer


def take(training, model, optimizer):
    """Goes on with other objects; flags that no file tells are set as a user sets them."""
    for p, q in zip(model.parameters(), training.model.parameters(), strict=True):
        p.requires_grad_(q.requires_grad)
    for m, n in zip(model.modules(), training.model.modules(), strict=True):
        m.training = n.training
    training.model, training.optimizer = model, optimizer


def replaced(training, draw):
    """A new parameter of the same numbers in the place of one that a single module holds."""
    every = list(training.model.named_parameters(remove_duplicate=False))
    single = [name for name, p in every if sum(p is q for _, q in every) == 1]
    path, _, name = draw.unnamed(single).rpartition(".")
    module = training.model.get_submodule(path)
    old = getattr(module, name)
    if draw.unnamed((True, False)):
        new = type(old)(old.data.clone(), old.requires_grad)
    else:
        new = nn.Parameter(old.data.clone(), old.requires_grad)
    setattr(module, name, new)
    training.optimizer = resumed(training, training.model)


def converted_to_and_fro(training, draw):
    """To float64 and back, or to where it is already."""
    model, double = training.model, training.dtype.to_real() == torch.float64
    if draw.unnamed((True, False)):
        model.double() if double else model.float()
        model.cpu()
    elif not double:
        model.double()
        model.float()


def swapped(training, draw):
    if training.dtype.is_complex:  # `converted` returns complex parameters as they are
        return
    with future("swap_module_params_on_conversion"):
        converted_to_and_fro(training, draw)


def overwritten(training, draw):
    """The same, where PyTorch makes new parameters of it."""
    if training.dtype.is_complex:  # of which PyTorch makes none where there is nothing to convert
        return
    with future("overwrite_module_params_on_conversion"):
        converted_to_and_fro(training, draw)
    training.tie(training.model)
    training.optimizer = resumed(training, training.model)


def shared(training, draw):
    grads = [p.grad for p in training.model.parameters() if p.grad is not None]
    if not any(grad.is_sparse for grad in grads):  # which PyTorch cannot share
        training.model.share_memory()


def evaluated(training, draw):
    modes = [m.training for m in training.model.modules()]
    training.model.eval()
    with torch.inference_mode(draw.unnamed((True, False))), torch.no_grad():
        training.model(example(training))
    training.model.train()
    for module, mode in zip(training.model.modules(), modes, strict=True):
        module.training = mode


def example(training):
    """An input."""
    return torch.linspace(-1, 1, 24).reshape(3, 2, 4).to(training.dtype)


def looked_at(training, draw):
    model, optimizer = training.model, training.optimizer
    repr(optimizer), repr(model), optimizer.state_dict(), model.state_dict()
    optimizer.skipped_steps()
    for p in projunn.unitary_parameters(model):
        if p.numel():
            shapes = {projunn.matrix_view(seen).shape for seen in (p, p.data, p.detach())}
            check(len(shapes) == 1, f"the data is seen in other layouts: {shapes}")
    for p in model.parameters():
        repr(p), repr(p.grad)


def frozen_and_not(training, draw):
    flags = [p.requires_grad for p in training.model.parameters()]
    training.model.requires_grad_(False)
    for p, flag in zip(training.model.parameters(), flags, strict=True):
        p.requires_grad_(flag)


def averaged(training, draw):
    """An average of two copies is projected and thrown away."""
    average = AveragedModel(training.model)
    average.update_parameters(training.model)
    if projunn.unitary_parameters(average):
        projunn.project_(average)
    check(
        len(projunn.unitary_parameters(average)) == len(projunn.unitary_parameters(training.model)),
        "lost",
    )
    average.eval()


def deployed(training, draw):
    """A copy of plain layers computes the same."""
    model = copy.deepcopy(training.model)
    try:
        plain = projunn.to_plain(model)
    except ValueError as error:
        check("layer" in str(error), str(error))  # there is none for one of them
        return
    check(not projunn.unitary_parameters(plain), "a plain model has unitary parameters")
    agree(training, plain)


def agree(training, model):
    """Check that another model computes the same."""
    if any(isinstance(module, Chosen) for module in model.modules()):
        return  # whose matrices must be unitary
    with torch.no_grad():
        x = example(training)
        wanted = training.model(x)
        error = (model(x) - wanted).abs().max() / (1 + wanted.abs().max())
    check(not error > 1e-4, f"the other model is off by {error:.2g}")


def forgotten(training, draw):
    """A copy of plain parameters, whose optimizer says what was unitary when it loads the state."""
    model = projunn.unconstrain(copy.deepcopy(training.model))
    check(not projunn.unitary_parameters(model), "a copy has unitary parameters")
    optimizer = training.new_optimizer(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    said = any("nothing keeps them so now" in str(warning.message) for warning in caught)
    known = any("missed" in state for state in training.optimizer.state.values())
    check(said == known, f"of state of unitary parameters for plain ones {'nothing' * known} was said")


def finetuned_copy(training, draw):
    """Rotations that have not learned change nothing, and are merged again."""
    model = copy.deepcopy(training.model)
    try:
        projunn.nn.finetune(model, "*", 2)
    except (TypeError, ValueError) as error:  # of complex layers, or without an nn.Linear
        check("nn.Linear" in str(error) or "real layer" in str(error), str(error))
        return
    agree(training, model)
    agree(training, projunn.nn.merge(model))


def another_optimizer(training, draw):
    """One that takes no step."""
    rule = draw.unnamed((optim.SGD, optim.AdamW, torch.optim.SGD, torch.optim.AdamW))
    rule(training.model.parameters(), lr=0.5)


def called_functionally(training, draw):
    model = training.model
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    if not any(isinstance(module, Chosen) for module in model.modules()):
        torch.func.functional_call(model, values, (example(training),))


KEEPS_GRADIENTS = (
    *(reloaded, evaluated, looked_at, frozen_and_not, averaged, deployed, shared),
    *(forgotten, finetuned_copy, another_optimizer, called_functionally),
)
# These lose gradients that wait for a step, as they do in PyTorch.
KEEPS_SKETCHES = (
    *(deepcopied, pickled, saved_whole, replaced, converted_to_and_fro, swapped, overwritten),
)
# And these the columns that sketches start from, unless they are in the state of the optimizer.
LOADS = (loaded, assigned, from_meta)
WITHOUT_GRADIENTS = (*KEEPS_SKETCHES, *LOADS, loaded)
