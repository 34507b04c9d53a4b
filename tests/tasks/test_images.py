"""Images: data, augmentation, evaluation mode."""

import pytest
import torch
from torch import nn

from projunn.tasks import Images, TaskOptions

pytestmark = pytest.mark.requires("sklearn")


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def test_digits_as_pictures():
    task = Images(TaskOptions(batch_size=32))
    x, y = task.batch(source())
    assert x.shape == (32, 1, 8, 8)
    assert y.shape == (32,)
    assert task.image_size == (8, 8)
    assert task.output_size == 10
    assert len(task.test_data()[1]) == 359
    everything = task._train[0]
    assert abs(everything.mean()) < 1e-5
    assert everything.std().item() == pytest.approx(1, abs=1e-4)


def test_augmentation_shifts_by_a_pixel():
    task = Images(TaskOptions(batch_size=200, augment=True))
    plain = Images(TaskOptions(batch_size=200))
    (x, y), (original, same) = task.batch(source(3)), plain.batch(source(3))
    assert torch.equal(y, same)
    shifts = [
        nn.functional.pad(original - task._black, (1,) * 4)[:, :, i : i + 8, j : j + 8] + task._black
        for i in range(3)
        for j in range(3)
    ]
    distances = torch.stack([(x - s).abs().amax((1, 2, 3)) for s in shifts])
    assert (distances.min(0).values < 1e-5).all()
    assert len(distances.argmin(0).unique()) == 9


def test_score_is_taken_in_evaluation_mode():
    task = Images(TaskOptions())
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    score = task.score(model, torch.device("cpu"))
    assert 0 <= score.accuracy <= 1
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_errors():
    with pytest.raises(ValueError, match="dataset: got 'cats', wanted one of digits"):
        Images(TaskOptions(dataset="cats"))
