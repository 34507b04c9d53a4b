"""The module knows which of its parameters are unitary; what shares their memory is read alike."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import projunn
from projunn import OffManifoldWarning, UnitaryParameter, constrain, matrix_view, unitarity_defect
from projunn.nn import BlockUnitaryLinear, UnitaryConv1d, UnitaryLinear, UnitaryRNN, UnitaryRNNCell
from projunn.noticing import estimated_defect
from projunn.optim import RMSprop
from tests.dense import defect, polar


class Bank(nn.Module):
    """A user's module with a bank of complex matrices."""

    def __init__(self):
        super().__init__()
        self.bank = UnitaryParameter(torch.empty(3, 4, 4, 2), pairs=True)
        projunn.init.haar_(self.bank)

    def forward(self, x):
        return torch.einsum("bij,bj->bi", torch.view_as_complex(self.bank), x)


def test_a_users_module_remembers_its_unitary_parameter_through_loading_and_conversion():
    module, other = Bank(), Bank().double()
    other.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
    assert type(other.bank) is UnitaryParameter
    assert other.bank.pairs
    other.bank = nn.Parameter(module.bank.detach().clone())
    optimizer = RMSprop(other.parameters(), lr=0.1)
    other(torch.randn(3, 4, dtype=torch.complex64)).abs().square().sum().backward()
    optimizer.step()
    assert optimizer.state[other.bank]["basis"].shape == (3, 4, 1, 2)


def test_a_new_layout_of_a_users_parameter_is_the_users_word():
    module = Bank()
    module.bank = UnitaryParameter(projunn.init.haar_(torch.empty(8, 4)), blocks=2)
    assert module.bank.blocks == 2
    assert not module.bank.pairs


def test_views_of_the_memory_of_pairs_and_blocks_are_read_as_what_they_hold():
    bank = UnitaryParameter(torch.empty(3, 4, 4, 2), pairs=True)
    projunn.init.haar_(bank)
    assert unitarity_defect(bank.data[1:]).shape == (2,)
    assert unitarity_defect(bank.data[1]).shape == ()
    assert unitarity_defect(torch.view_as_complex(bank.data)).max() < 1e-6
    assert unitarity_defect(bank.data[..., 0]).max() > 0.1  # real parts: real matrices
    assert matrix_view(bank.data[:, :, :2]).shape == (3, 4, 2)  # two columns
    assert unitarity_defect(bank.data[:, :, :2]).max() < 1e-6
    assert matrix_view(bank.data.transpose(1, 2)).dtype == torch.complex64
    for other in (bank.data.view(3, 4, 8), bank.data.movedim(-1, 0)):
        with pytest.raises(ValueError, match="shares memory with a unitary parameter of shape"):
            unitarity_defect(other)
    lstm = constrain(nn.LSTM(3, 4), "weight_hh_l0")
    weight = lstm.weight_hh_l0.detach()
    assert unitarity_defect(weight).shape == (4,)
    assert unitarity_defect(weight[:8]).shape == (2,)
    assert unitarity_defect(weight.chunk(4)[1]) < 1e-6
    assert unitarity_defect(weight.view(4, 4, 4)).shape == (4,)
    assert unitarity_defect(lstm.weight_ih_l0.detach()).shape == ()
    with pytest.raises(ValueError, match="4 blocks"):
        unitarity_defect(weight.T)


def test_of_other_tensors_only_the_user_can_say_what_they_hold():
    bank = UnitaryParameter(torch.empty(3, 4, 2, 2), pairs=True)
    projunn.init.haar_(bank)
    copied = bank.detach().clone()
    assert matrix_view(copied) is copied
    assert unitarity_defect(matrix_view(copied, pairs=True)).max() < 1e-6
    projunn.init.haar_(matrix_view(copied, pairs=True))
    assert defect(torch.view_as_complex(copied)) < 1e-6
    gates = constrain(nn.GRU(3, 4), "weight_hh_l0").state_dict()["weight_hh_l0"].clone()
    assert unitarity_defect(matrix_view(gates, blocks=3)).max() < 1e-6


def test_memory_that_a_conversion_has_moved_is_still_known():
    lstm = constrain(nn.LSTM(3, 4), "weight_hh_l0").double()
    assert unitarity_defect(lstm.weight_hh_l0.data).shape == (4,)


def test_memory_that_is_used_again_is_not_mistaken():
    for _ in range(50):
        weight = UnitaryParameter(torch.empty(4, 4, 2), pairs=True)
        del weight
        plain = torch.eye(4, 4).expand(2, 4, 4).permute(1, 2, 0).contiguous()
        assert matrix_view(plain) is plain


def test_a_module_and_its_memory_are_freed_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        for make in (
            lambda: UnitaryLinear(4, 4, dtype=torch.complex64, sketch_rank=1),
            lambda: constrain(nn.LSTM(3, 4), "weight_hh_l0"),
            lambda: UnitaryRNN(2, 3),
            lambda: copy.deepcopy(UnitaryConv1d(2, 2, 4)),
        ):
            module = make()
            alive, storage = (
                weakref.ref(module),
                weakref.ref(next(module.parameters()).untyped_storage()),
            )
            del module
            assert alive() is None
            assert storage() is None
    finally:
        gc.enable()


def test_tied_weights_are_one_parameter_after_a_new_one_is_assigned_to_both():
    first, second = UnitaryLinear(4, 4), UnitaryLinear(4, 4)
    first.weight = second.weight = nn.Parameter(first.weight.detach().clone())
    assert first.weight is second.weight
    assert len(projunn.unitary_parameters(nn.ModuleList([first, second]))) == 1


def test_a_sketch_has_one_owner_after_copies_and_conversions():
    layer = copy.deepcopy(UnitaryLinear(6, 6, sketch_rank=2)).double()
    optimizer = projunn.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        layer(torch.randn(3, 6, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    before = layer.weight.sketch.stored_left.clone()
    projunn.unitary_parameters(layer)
    projunn.optim.SGD(layer.parameters(), lr=0.1)
    assert torch.equal(layer.weight.sketch.stored_left, before)
    assert layer.weight.sketch.dtype == torch.float64


def test_constrain_projects_again_what_is_marked_already():
    layer = constrain(nn.Linear(4, 4))
    with torch.no_grad():
        layer.weight.add_(0.3 * torch.randn(4, 4))
    wanted = polar(layer.weight.detach())
    constrain(layer)
    torch.testing.assert_close(layer.weight.detach(), wanted, atol=1e-5, rtol=0)


def test_attention_projects_queries_keys_and_values_each():
    attention = constrain(nn.MultiheadAttention(6, 2), "in_proj_weight")
    constrain(attention.out_proj)
    assert unitarity_defect(attention.in_proj_weight).shape == (3,)
    assert unitarity_defect(attention.in_proj_weight).max() < 1e-6
    different = constrain(nn.MultiheadAttention(6, 2, kdim=4, vdim=5), "k_proj_weight")
    assert unitarity_defect(different.k_proj_weight) < 1e-6
    optimizer = projunn.optim.AdamW(attention.parameters(), lr=0.1)
    x = torch.randn(5, 2, 6)
    for _ in range(3):
        attention(x, x, x)[0].square().sum().backward()
        optimizer.step()
    assert unitarity_defect(attention.in_proj_weight).max() < 1e-5
    encoder = nn.TransformerEncoderLayer(6, 2, 8)
    assert unitarity_defect(constrain(encoder.self_attn, "in_proj_weight").in_proj_weight).max() < 1e-6


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nn.LazyLinear(3), ValueError, "no size yet"),
        (lambda: nn.Linear(0, 3), ValueError, "shape"),
        (lambda: nn.Embedding(3, 3), ValueError, "looked up"),
    ],
)
def test_constrain_refuses_in_words(make, error, words):
    with pytest.raises(error, match=words):
        constrain(make())


def test_project_takes_the_nearest_matrices_of_a_weight_or_a_module():
    model = nn.Sequential(
        UnitaryLinear(4, 6, dtype=torch.complex64),
        constrain(nn.Linear(6, 9), blocks=3),
        BlockUnitaryLinear(3, 3),
    )
    with torch.no_grad():
        for p in projunn.unitary_parameters(model):
            p.add_(0.2 * torch.randn_like(p))
    wanted = [nearest(matrix_view(p).detach()) for p in projunn.unitary_parameters(model)]
    identities = [id(p) for p in model.parameters()]
    assert projunn.project_(model[0].weight) is model[0].weight
    assert projunn.project_(model) is model
    for p, matrices in zip(projunn.unitary_parameters(model), wanted, strict=True):
        torch.testing.assert_close(matrix_view(p).detach(), matrices, atol=1e-5, rtol=0)
    assert [id(p) for p in model.parameters()] == identities
    plain = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(projunn.project_(plain.clone()), nearest(plain))


def nearest(matrices):
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    return u @ vh


def test_project_names_what_it_cannot_do_and_changes_nothing():
    with pytest.raises(ValueError, match="Linear has no unitary parameters"):
        projunn.project_(nn.Linear(3, 3))
    model = nn.Sequential(constrain(nn.Linear(3, 3)), UnitaryLinear(3, 3))
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[1].weight[0, 0] = torch.inf
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="weight of UnitaryLinear has entries that are not finite"):
        projunn.project_(model)
    assert torch.equal(model[0].weight, before)


def test_a_weight_off_the_manifold_is_said_once_with_its_name_and_defect():
    layer = UnitaryLinear(8, 8)
    state = {name: 1.5 * value for name, value in layer.state_dict().items()}
    with pytest.warns(OffManifoldWarning, match=r"load_state_dict .* weight of UnitaryLinear \(1\.2"):
        layer.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.load_state_dict(state)
        optimizer = projunn.optim.SGD(layer.parameters(), lr=0.0)
        layer(torch.randn(2, 8)).sum().backward()
        optimizer.step()
        layer.eval()
    projunn.project_(layer)
    with pytest.warns(OffManifoldWarning):
        layer.load_state_dict(state)  # a new accident


@pytest.mark.parametrize("shape", [(40, 40), (3, 20, 50), (50, 20)])
def test_the_estimate_of_a_defect_is_near_it_and_moves_no_generator(dtype, shape):
    weight = projunn.init.haar_(torch.empty(shape, dtype=dtype))
    assert estimated_defect(weight) < 1e-5
    weight += 0.05 * torch.randn_like(weight) / shape[-1] ** 0.5
    state = torch.get_rng_state()
    ratio = estimated_defect(weight) / unitarity_defect(weight).max()
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.7 < ratio < 1.4


def test_an_optimizer_that_is_pickled_knows_a_parameter_that_was_swapped_afterwards():
    layer = constrain(nn.Linear(4, 4))
    layer(torch.randn(2, 4)).sum().backward()
    optimizer = projunn.optim.SGD(layer.parameters(), lr=0.1)
    optimizer.step()
    layer, optimizer = pickle.loads(pickle.dumps((layer, optimizer)))
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer._apply(lambda tensor: tensor.clone())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert type(layer.weight) is nn.Parameter  # PyTorch has changed its class
    before = layer.weight.detach().clone()
    layer(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)
    assert defect(layer.weight.detach()) < 1e-6


def first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
@pytest.mark.parametrize("layer", [UnitaryRNN, UnitaryRNNCell])
def test_a_recurrent_layer_in_double_computes_as_one_made_in_double(layer, kind):
    precise = torch.complex128 if kind.is_complex else torch.float64
    single, fresh = layer(3, 4, dtype=kind), layer(3, 4, dtype=precise)
    fresh.load_state_dict(single.state_dict())
    x = torch.randn(2, 3, dtype=torch.float64)
    for convert in (lambda m: m.double(), lambda m: m.to(torch.float64)):
        converted = convert(copy.deepcopy(single))
        assert first(converted(x)).dtype == precise
        torch.testing.assert_close(first(converted(x)), first(fresh(x)))
        torch.testing.assert_close(first(converted.float()(x.float())), first(single(x.float())))


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
def test_a_converted_convolution_gives_another_size_in_its_new_dtype(kind):
    layer = UnitaryConv1d(2, 3, 6, dtype=kind).double().resized(9)
    assert layer.weight.dtype == torch.float64
    y = layer(torch.randn(1, 2, 9, dtype=torch.float64))
    assert y.dtype == (torch.complex128 if kind.is_complex else torch.float64)
    assert unitarity_defect(layer.weight).max() < 1e-12


@pytest.mark.parametrize(
    "make",
    [
        lambda: UnitaryLinear(3, 4, dtype=torch.complex64),
        lambda: UnitaryRNN(3, 4, dtype=torch.complex64),
        lambda: UnitaryConv1d(2, 3, 4, dtype=torch.complex64),
        lambda: BlockUnitaryLinear(2, 3, dtype=torch.complex64),
    ],
)
def test_true_complex_matrices_load_into_a_layer_that_stores_pairs(make):
    source, target = make(), make()
    state = {
        name: torch.view_as_complex(p.detach().clone()) if p.shape[-1] == 2 else p.detach()
        for name, p in source.named_parameters()
    }
    for assign in (False, True):
        target = make()
        target.load_state_dict(state, assign=assign)
        for p, q in zip(source.parameters(), target.parameters(), strict=True):
            assert torch.equal(p, q)
        assert [p.pairs for p in projunn.unitary_parameters(target)] == [True]


@pytest.mark.parametrize("kind", ["Linear", "RNN", "Conv"])
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_complex_layers_go_to_complex128(kind):
    layer = {
        "Linear": lambda: UnitaryLinear(3, 4, dtype=torch.complex64),
        "RNN": lambda: UnitaryRNN(3, 4, dtype=torch.complex64),
        "Conv": lambda: UnitaryConv1d(3, 4, 5, dtype=torch.complex64),
    }[kind]()
    double = copy.deepcopy(layer).to(torch.complex128)
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    x = torch.randn((2, 3, 5) if kind == "Conv" else (2, 3), dtype=torch.complex128)
    y, z = first(double(x)), first(copy.deepcopy(layer).double()(x))
    assert y.dtype == torch.complex128
    torch.testing.assert_close(y, z)
    assert {p.dtype for p in double.to(torch.complex64).parameters()} == {torch.float32}


def test_a_compiled_function_knows_a_weight_that_a_compiled_step_has_moved():
    layer = UnitaryConv1d(2, 3, 4)
    optimizer = projunn.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 2, 4)).square().sum().backward()
    torch.compile(lambda: optimizer.step(), backend="aot_eager", fullgraph=True)()
    weight = layer.weight
    found = torch.compile(lambda: unitarity_defect(weight), backend="aot_eager", fullgraph=True)()
    torch.testing.assert_close(found, unitarity_defect(weight))


def test_a_compiled_step_of_another_optimizer_is_left_alone():
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.SGD([*layer.parameters(), *UnitaryLinear(3, 3).parameters()], lr=0.1)
    layer(torch.randn(2, 3)).sum().backward()
    before = layer.weight.detach().clone()
    torch.compile(optimizer.step, backend="aot_eager")()
    assert not torch.equal(layer.weight, before)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "functionalize", "make_fx"])
def test_under_transforms_a_weight_is_read_as_it_is(transform):
    bank = UnitaryParameter(torch.empty(3, 4, 4, 2), pairs=True)
    projunn.init.haar_(bank)
    plain = projunn.init.haar_(torch.empty(3, 4, 4))

    def energy(weight):
        matrices = matrix_view(weight)
        assert matrices.shape[-2:] == (4, 4)
        return matrices.abs().square().sum()

    for weight in (bank, bank.detach(), plain):
        given = weight.detach()
        if transform == "vmap":
            torch.testing.assert_close(torch.func.vmap(energy)(weight).detach(), torch.full((3,), 4.0))
        elif transform == "grad":
            torch.testing.assert_close(torch.func.grad(energy)(weight).detach(), 2 * given)
        elif transform == "jvp":
            torch.testing.assert_close(torch.func.jvp(energy, (given,), (given,))[1], torch.tensor(24.0))
        elif transform == "functionalize":
            torch.testing.assert_close(torch.func.functionalize(energy)(given), torch.tensor(12.0))
        else:
            torch.testing.assert_close(make_fx(energy)(plain)(plain), torch.tensor(12.0))


def test_a_complex_block_of_five_axes_takes_no_memory_format():
    layer = BlockUnitaryLinear(2, 3, num_factors=2, dtype=torch.complex64)
    x, before = torch.randn(2, 6), layer.weight.detach().clone()
    layer.to(memory_format=torch.channels_last).to(memory_format=torch.channels_last_3d)
    assert layer.weight.is_contiguous()
    assert torch.equal(layer.weight, before)
    assert layer(x).isfinite().all()


def test_a_shard_of_a_flattened_weight_is_refused():
    """What a process holds of a weight that FSDP1 shards with ``use_orig_params``."""
    for layer in (UnitaryLinear(4, 4), UnitaryLinear(4, 4, dtype=torch.complex64)):
        layer.weight.data = layer.weight.data.flatten()[:8]
        with pytest.raises(TypeError, match=r"weight of UnitaryLinear, of shape \(8,.* is flattened"):
            projunn.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"a parameter of shape \(4,\) is flattened, or a vector"):
        projunn.optim.SGD([projunn.UnitaryParameter(torch.ones(4))], lr=0.1)
