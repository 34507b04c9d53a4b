"""Networks: shapes, signals through depth, compilation."""

import pytest
import torch
from torch import nn

import projunn
from projunn.models import CayleyConv2d, Center, DeepConvNet, LipschitzConvNet, ResNet9
from projunn.optim import RMSprop
from tests.dense import defect


@pytest.mark.parametrize("conv", ["unitary", "plain", "cayley"])
@pytest.mark.parametrize("size", [4, (7, 9), 8])
def test_resnet9_takes_images_of_any_size(conv, size):
    model = ResNet9(3, 5, size, conv, width=4)
    height, width = (size, size) if isinstance(size, int) else size
    output = model(torch.randn(2, 3, height, width))
    assert output.shape == (2, 5)
    assert len(projunn.unitary_parameters(model)) == (16 if conv == "unitary" else 0)


def test_resnet9_compiles_to_one_graph_and_matches_eager():
    """Traced for Inductor, which compiles convolutions in `tests/nn/test_conv.py`."""
    torch._dynamo.reset()
    model = ResNet9(1, 10, 8, width=4)
    x, y = torch.randn(4, 1, 8, 8), torch.randint(10, (4,))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def gradients(network):
        output = network(x)
        loss = nn.functional.cross_entropy(output, y)
        return output, *torch.autograd.grad(loss, list(model.parameters()))

    for ours, theirs in zip(gradients(compiled), gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_signal_through_a_hundred_layers():
    x = torch.randn(4, 4, 4, 4)
    deep = DeepConvNet(4, 3, 4, width=8, depth=100)
    y = deep.body(x)
    torch.testing.assert_close(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    x.requires_grad_()
    y = deep.body(x)
    cotangent = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    assert gradient.norm() > 0.3 * cotangent.norm()  # a co-isometry of 8 channels to 4
    plain = DeepConvNet(4, 3, 4, "plain", width=8, depth=100)
    difference = (plain.body(x) - plain.body(x.flip(0))).norm()
    assert difference < 1e-6 * x.norm()  # plain layers have forgotten their input


@pytest.mark.parametrize("sizes", [(3, 3, 1), (2, 5, 1), (5, 2, 1), (2, 8, 2), (2, 6, 2)])
@pytest.mark.parametrize("image", [8, (6, 4)])
def test_cayley_convolution_is_orthogonal(sizes, image):
    n, m, stride = sizes
    layer = CayleyConv2d(n, m, image, stride, bias=False).double()
    assert defect(layer.frequency_response().detach()) < 1e-13
    height, width = (image, image) if isinstance(image, int) else image
    x = torch.randn(2, n, height, width, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (2, m, height // stride, width // stride)
    if m >= n * stride**2:
        torch.testing.assert_close(y.norm(), x.norm())
    else:
        assert y.norm() < x.norm()


def test_lipschitz_net_is_lipschitz_before_and_after_training():
    model = LipschitzConvNet(1, 4, 8, width=4)
    optimizer = RMSprop(model.parameters(), lr=1e-2, unitary_lr=1e-2)
    x, y = torch.randn(8, 1, 8, 8), torch.randint(4, (8,))
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    jacobian = torch.autograd.functional.jacobian(lambda t: model(t[None])[0], x[0])
    assert torch.linalg.matrix_norm(jacobian.flatten(1), 2) <= 1 + 1e-5
    assert projunn.lipschitz_bound(model) == pytest.approx(1, abs=1e-5)


def test_networks_with_and_without_a_mean_share_their_weights():
    """Saved weights of earlier versions, which had none, load."""
    plain = LipschitzConvNet(2, 3, 4, width=2)
    mean = torch.tensor([0.2, 0.5])[:, None, None]
    centred = LipschitzConvNet(2, 3, 4, width=2, mean=mean)
    kept = centred.load_state_dict(plain.state_dict(), strict=False)
    assert kept.missing_keys == ["center.mean"]
    assert not kept.unexpected_keys
    x = torch.rand(5, 2, 4, 4)
    torch.testing.assert_close(centred(x), plain(x - mean))
    normalized = LipschitzConvNet(2, 3, 4, width=2, last_layer="normalized")
    assert not normalized.load_state_dict(plain.state_dict()).missing_keys
    torch.testing.assert_close(normalized(x), plain(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ResNet9(1, 2, 3), "image_size: got 3, wanted height and width of at least 4"),
        (lambda: ResNet9(1, 2, 8, "octave"), "conv: got 'octave', wanted one of unitary, plain, cayley"),
        (lambda: DeepConvNet(1, 2, 8, depth=0), "depth: got 0"),
        (lambda: LipschitzConvNet(1, 2, 6), "image_size: got 6, wanted height and width divisible by 4"),
        (lambda: CayleyConv2d(1, 2, 5, 2), "stride: got 2"),
        (lambda: LipschitzConvNet(1, 2, 8, last_layer="free"), "last_layer: got 'free', wanted one of"),
        (lambda: LipschitzConvNet(1, 2, 8, mean=torch.ones(3)), r"mean: got shape \(3,\), wanted one"),
        (
            lambda: Center(torch.ones(2))(torch.ones(3, 3)),
            r"input: got shape \(3, 3\), wanted \(batch, 2",
        ),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("mean", [0.5, "x", [0.1], torch.ones(1, dtype=torch.int64), torch.ones(1) * 1j])
def test_a_mean_that_is_no_tensor_of_real_numbers_is_refused(mean):
    with pytest.raises(TypeError, match="mean: got"):
        LipschitzConvNet(1, 2, 8, mean=mean)
