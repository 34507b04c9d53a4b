"""The data of the tasks, against their definitions, and their naive baselines."""

from math import log

import pytest
import torch

from projunn.tasks import TASKS, Adding, Copying, Pixels, TaskOptions, Unitary, declarations
from projunn.training import TrainConfig


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def test_adding_is_the_sum_of_the_marked_numbers():
    task = Adding(TaskOptions(length=31, batch_size=4000))
    x, y = task.batch(source())
    assert x.shape == (31, 4000, 2)
    numbers, marks = x.unbind(-1)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert (marks[:15].sum(0) == 1).all()
    assert (marks[15:].sum(0) == 1).all()
    torch.testing.assert_close((numbers * marks).sum(0), y)
    assert (marks.sum(1) > 60).all()  # every place is drawn: 4000/16 times on average
    guess = torch.ones(4000, 1)
    assert task.loss(guess, y).item() == pytest.approx(task.naive, rel=0.1)


def test_copying_shows_and_wants_the_symbols():
    task = Copying(TaskOptions(length=17, batch_size=300))
    x, y = task.batch(source())
    shown = x.argmax(-1)
    assert x.shape == (37, 300, 10)
    assert (x.sum(-1) == 1).all()
    assert torch.equal(shown[:10], y[-10:])
    assert set(shown[:10].flatten().tolist()) == set(range(8))
    assert (shown[26] == 9).all()
    assert (shown == 9).sum() == 300
    assert (y[:27] == 8).all()
    # Sure of the blanks, without a clue about the symbols: the naive loss, an eighth of them right.
    output = torch.zeros(37, 300, 9)
    output[:27, :, 8] = 50.0
    output[27:, :, 8] = -50.0
    assert task.loss(output, y).item() == pytest.approx(task.naive, rel=1e-4)
    assert task.naive == pytest.approx(10 * log(8) / 37)
    assert task.accuracy(x[..., :9].roll(27, 0), y) == 1


@pytest.mark.requires("sklearn")
@pytest.mark.parametrize("permuted", [False, True])
def test_pixels_are_the_digits_of_scikit_learn(permuted):
    from sklearn.datasets import load_digits

    task = Pixels(TaskOptions(permuted=permuted, batch_size=64))
    data = load_digits()
    images = torch.from_numpy(data.data).float() / 16
    (x, _), (test_x, test_y) = task.batch(source()), task.test_data()
    assert x.shape == (64, 64, 1)
    assert test_x.shape[1] == 359  # a fifth of 1,797
    assert torch.equal(test_y, torch.from_numpy(data.target)[4::5])
    assert torch.equal(test_x[:, 0, 0], images[4]) is not permuted
    assert torch.equal(test_x[:, 0, 0].sort()[0], images[4].sort()[0])
    held_out = {tuple(image) for image in test_x[..., 0].mT.tolist()}
    assert not any(tuple(image) in held_out for image in x[..., 0].mT.tolist())
    assert torch.equal(Pixels(TaskOptions(permuted=permuted)).test_data()[0], test_x)
    assert task.naive == pytest.approx(log(10))


@pytest.mark.parametrize("complex_", [False, True])
def test_unitary_pairs_belong_to_one_unitary_matrix(complex_):
    task = Unitary(TaskOptions(size=6, batch_size=16, complex=complex_, seed=3))
    u = task.target
    torch.testing.assert_close(u.mH @ u, torch.eye(6, dtype=u.dtype), atol=1e-6, rtol=0)
    x, y = task.batch(source())
    torch.testing.assert_close(torch.linalg.vector_norm(x, dim=-1), torch.ones(16))
    torch.testing.assert_close(y, x @ u.mT)
    assert torch.equal(Unitary(task.options).target, u)
    if not complex_:
        assert torch.linalg.det(u) == pytest.approx(1)
    model = torch.nn.Linear(6, 6, bias=False, dtype=u.dtype)
    with torch.no_grad():
        model.weight.copy_(2 * u)
    assert task.score(model, torch.device("cpu")).loss == pytest.approx(1)


@pytest.mark.requires("sklearn")
@pytest.mark.parametrize("name", TASKS)
def test_batches_follow_the_generator(name):
    small = {k: v for k, v in {"size": 5, "length": 12}.items() if name in declarations()[k]}
    config = TrainConfig.for_task(name, batch_size=4, **small)
    task = TASKS[name](config.task_options)
    (x, y), (same_x, same_y), (other, _) = (task.batch(source(s)) for s in (1, 1, 2))
    assert torch.equal(x, same_x)
    assert torch.equal(y, same_y)
    assert not torch.equal(x, other)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Adding(TaskOptions(length=1)), "length: got 1"),
        (lambda: Copying(TaskOptions(length=0)), "length: got 0"),
        (lambda: Pixels(TaskOptions(dataset="cats")), "dataset: got 'cats', wanted one of digits"),
        (lambda: Unitary(TaskOptions(size=0)), "size: got 0"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("size", [2, 64, 512])
def test_a_real_matrix_to_learn_and_the_one_at_the_start_are_rotations_at_any_size(size):
    """Else no path of rotations leads from one to the other, and the error stays at 2 / sqrt(n)."""
    for seed in range(4):
        task = Unitary(TaskOptions(size=size, seed=seed))
        start = task.build("unitary").matrix.detach()
        for matrix in (task.target, start):
            assert torch.linalg.slogdet(matrix.double()).sign == 1
