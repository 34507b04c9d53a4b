"""What is said of weights that are off the manifold, and that nothing of it is lost."""

import copy
import warnings

import pytest
import torch
from torch import nn

import projunn
from projunn import OffManifoldWarning
from projunn.nn import UnitaryConv2d, UnitaryLinear
from projunn.optim import SGDG, AdamW, Isospectral


def stretched(module):
    return {name: 1.5 * value for name, value in module.state_dict().items()}


def texts(action):
    """What Python shows under its default filter, which shows one text once for a line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        action()
    assert all(w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught if issubclass(w.category, OffManifoldWarning)]


def model_of_two():
    return nn.Sequential(UnitaryLinear(4, 4), nn.Sequential(projunn.constrain(nn.Linear(4, 4))))


def test_each_layer_that_is_loaded_off_the_manifold_is_named_by_its_path():
    model = model_of_two()
    said = texts(lambda: model.load_state_dict(stretched(model)))
    assert len(said) == 2
    assert " 0.weight of UnitaryLinear (" in said[0]
    assert " 1.0.weight of Linear (" in said[1]


def test_two_models_with_one_name_and_one_defect_are_both_said():
    models = [UnitaryLinear(4, 4) for _ in range(2)]
    states = [{**model.state_dict(), "weight": 1.5 * torch.eye(4)} for model in models]

    def load():
        for model, state in zip(models, states, strict=True):
            model.load_state_dict(state)

    said = texts(load)
    assert len(said) == 2
    assert said[0] == said[1]


def test_optimizers_that_know_the_names_of_parameters_say_their_paths():
    for rule in (projunn.optim.SGD, torch.optim.SGD):
        model = model_of_two()
        with torch.no_grad():
            for p in projunn.unitary_parameters(model):
                p.mul_(1.5)
        optimizer = rule(model.named_parameters(), lr=1e-3)
        model(torch.randn(3, 4)).sum().backward()
        (said,) = texts(optimizer.step)
        assert " 0.weight of UnitaryLinear (" in said
        assert " 1.0.weight of Linear (" in said


def test_a_layer_that_is_loaded_alone_after_its_model_loses_the_path_of_then():
    model = model_of_two()
    model.load_state_dict(model.state_dict())
    (said,) = texts(lambda: model[0].load_state_dict(stretched(model[0])))
    assert " weight of UnitaryLinear (" in said


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_of_a_unitary_parameter_is_refused():
    layer = UnitaryLinear(4, 4)
    with pytest.raises(TypeError, match=r"name: 'weight' of UnitaryLinear is unitary.*unconstrain"):
        nn.utils.weight_norm(layer)
    plain = nn.utils.weight_norm(projunn.unconstrain(UnitaryLinear(4, 4)))
    assert {"weight_g", "weight_v"} <= dict(plain.named_parameters()).keys()


def test_the_parametrization_of_weight_norm_raises_and_leaves_the_layer_unitary():
    layer = UnitaryLinear(4, 4)
    before = layer.weight
    with pytest.raises(RuntimeError, match=r"detach\(\)"):
        nn.utils.parametrizations.weight_norm(layer)
    assert layer.weight is before
    assert projunn.unitary_parameters(layer) == [before]
    assert not hasattr(layer, "parametrizations")


@pytest.mark.parametrize(("rule", "options"), [(Isospectral, {"isospectral": False}), (SGDG, {})])
@pytest.mark.parametrize(
    "make", [lambda: UnitaryConv2d(2, 2, 4), lambda: UnitaryLinear(4, 4, dtype=torch.complex64)]
)
def test_optimizers_of_plain_parameters_say_which_unitary_ones_they_move(rule, options, make):
    layer = make()
    x = torch.randn(3, 2, 4, 4) if isinstance(layer, UnitaryConv2d) else torch.randn(3, 4)
    (layer(x) - 1).abs().square().sum().backward()
    with pytest.warns(OffManifoldWarning, match=f"After a step of {rule.__name__}, .* weight of "):
        rule(layer.parameters(), lr=0.1, **options).step()


@pytest.mark.parametrize("options", [{"isospectral": True}, {"stiefel": True}])
def test_optimizers_of_plain_parameters_do_not_warn_of_those_that_they_keep(options):
    layer = UnitaryLinear(4, 4)
    rule = SGDG if "stiefel" in options else Isospectral
    (layer(torch.randn(3, 4)) - 1).square().sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule(layer.parameters(), lr=0.1, **options).step()


@pytest.mark.parametrize("rule", [AdamW, SGDG])
def test_the_line_is_that_of_the_users_call_where_a_step_runs_without_autocast(rule):
    layer = UnitaryLinear(4, 4)
    optimizer = rule(layer.parameters(), lr=0.1)
    layer(torch.randn(3, 4)).square().sum().backward()
    layer.weight.data.mul_(2)
    with torch.autocast("cpu"), pytest.warns(OffManifoldWarning) as said:
        optimizer.step()
    assert said[0].filename == __file__


def test_a_weight_that_is_averaged_while_an_optimizer_steps_it_is_said_before_evaluation():
    layer = UnitaryLinear(32, 32)  # whose drift is corrected every 16 steps
    optimizer = AdamW(layer.parameters(), lr=0.1)
    layer(torch.randn(4, 32)).pow(4).sum().backward()
    optimizer.step()
    assert texts(layer.eval) == []
    layer.train().weight.data.lerp_(projunn.init.haar_(torch.empty(32, 32)), 0.5)
    (said,) = texts(layer.eval)
    assert "Before evaluation" in said


def test_an_average_that_evaluates_from_the_start_is_said_at_the_next_evaluation():
    """As ``ModelEmaV3`` of timm keeps one."""
    layer = UnitaryLinear(8, 8)
    average = copy.deepcopy(layer).eval()
    assert texts(average.eval) == []
    with torch.no_grad():
        average.weight.lerp_(projunn.init.haar_(torch.empty(8, 8)), 0.5)
    (said,) = texts(average.eval)
    assert "Before evaluation" in said
    assert texts(average.eval) == []
    projunn.project_(average)
    assert texts(average.eval) == []


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_convolution_in_half_precision_is_measured_before_evaluation_and_projected(half):
    """Half precision has no complex numbers to calculate with."""
    layer = UnitaryConv2d(2, 4, 4).to(half)
    with pytest.warns(OffManifoldWarning, match="Before evaluation"):
        layer.eval()
    layer.load_state_dict(stretched(layer))
    assert all((projunn.unitarity_defect(p) > 1).all() for p in projunn.unitary_parameters(layer))
    projunn.project_(layer)
    for p in projunn.unitary_parameters(layer):
        assert p.dtype == half
        assert projunn.unitarity_defect(p).max() < 2 * torch.finfo(half).eps
