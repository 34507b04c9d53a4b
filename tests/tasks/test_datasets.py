"""Images read from files that the user names."""

import contextlib
import gzip
import struct

import pytest
import torch

from projunn.tasks import Images, Pixels, TaskOptions
from projunn.tasks.datasets import load_images

numpy = pytest.importorskip("numpy")


@pytest.fixture
def drawn():
    """Ten images of 4 x 5 bytes, and labels."""
    return torch.randint(256, (10, 4, 5), dtype=torch.uint8), torch.arange(10) % 3


@pytest.fixture
def npz(drawn, tmp_path):
    path = tmp_path / "small.npz"
    numpy.savez(path, images=drawn[0].numpy(), labels=drawn[1].numpy().astype("uint8"))
    return path


def as_idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + bytes(array.flatten())


def folder(path, images, labels, pack=False):
    for name, part in (("train", slice(0, 7)), ("t10k", slice(7, 10))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", labels[part].byte())):
            content = as_idx(array)
            file = path / f"{name}-{kind}-ubyte"
            if pack:
                (path / f"{file.name}.gz").write_bytes(gzip.compress(content))
            else:
                file.write_bytes(content)
    return path


def test_the_last_fifth_of_an_npz_is_held_out(npz, drawn):
    images, labels = drawn
    train, test = load_images("digits", str(npz))
    assert torch.equal((train[0] * 255).round().squeeze(1), images[:8].float())
    assert torch.equal((test[0] * 255).round().squeeze(1), images[8:].float())
    assert torch.equal(torch.cat([train[1], test[1]]), labels)


@pytest.mark.parametrize("pack", [False, True])
def test_the_files_of_mnist_are_read_from_a_folder(tmp_path, drawn, pack):
    images, labels = drawn
    train, test = load_images("digits", str(folder(tmp_path, images, labels, pack)))
    assert torch.equal((train[0] * 255).round().squeeze(1), images[:7].float())
    assert torch.equal((test[0] * 255).round().squeeze(1), images[7:].float())
    assert torch.equal(torch.cat([train[1], test[1]]), labels)


def test_tasks_say_which_images_they_had(npz):
    pixels = Pixels(TaskOptions(data=str(npz), permuted=True, batch_size=3))
    assert pixels.title.startswith("permuted pixels of small (8 / 2)")
    assert pixels.batch(torch.Generator())[0].shape == (20, 3, 1)
    assert pixels.output_size == 3
    images = Images(TaskOptions(data=str(npz), width=4))
    assert images.title == "small (8 / 2): resnet9"
    assert images.test_data()[0].shape == (2, 1, 4, 5)


@pytest.mark.parametrize("content", [b"", b"PK no archive", b"\x80\x04."])
def test_a_file_that_is_no_npz_is_refused_in_words(tmp_path, content):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data: .*broken.npz is no .npz of images and labels"):
        load_images("digits", str(path))


def test_files_that_are_cut_off_or_damaged_are_refused_in_words(tmp_path, drawn):
    """As a copy that was interrupted leaves them."""
    path = tmp_path / "damaged.npz"
    numpy.savez_compressed(path, images=drawn[0].numpy(), labels=drawn[1].numpy())
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(ValueError):  # not all that is in the file is read
            load_images("digits", str(path))
    folder(tmp_path, *drawn)
    content = as_idx(drawn[0])
    (tmp_path / "t10k-images-idx3-ubyte").unlink(missing_ok=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = gzip.compress(content)
    for damaged in (whole[:-9], whole[:-8] + bytes(8), whole[:12] + b"\xff" * 9 + whole[21:], b"none"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz cannot be read"):
            load_images("digits", str(tmp_path))


def test_arrays_and_folders_of_other_shapes_are_refused_in_words(tmp_path, drawn):
    path = tmp_path / "wrong.npz"
    numpy.savez(path, images=drawn[0].float().numpy(), labels=drawn[1].numpy())
    with pytest.raises(ValueError, match=r"data: got images \(10, 4, 5\) of torch.float32"):
        load_images("digits", str(path))
    with pytest.raises(ValueError, match=r"data: .* has no train-images-idx3-ubyte, nor train-"):
        load_images("digits", str(tmp_path))
    with pytest.raises(ValueError, match=r"data: .*missing.npz is no .npz"):
        load_images("digits", str(tmp_path / "missing.npz"))
    folder(tmp_path, *drawn)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(as_idx(drawn[0])[:-1])
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is no file of MNIST"):
        load_images("digits", str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "labels", "words"),
    [
        ((10, 1, 4, 5), [0, 1] * 5, r"got images \(10, 1, 4, 5\), wanted channels on the last axis"),
        ((4, 4, 5), [0, 1, 0, 1], "data: got 4 images that train and 0 that are held out"),
        ((10, 4, 5), [0, -1] * 5, "data: got a label -1, wanted classes from 0 on"),
        ((10, 4, 5), [0.5, 1] * 5, "data: got labels of torch.float64, wanted integers"),
        ((10, 4, 5), sorted([0, 1, 2, 3, 4] * 2), "held out have a label 4, .* up to 3; .*order"),
    ],
    ids=["channels first", "too few", "negative", "not whole", "sorted by class"],
)
def test_files_that_no_task_can_train_on_are_refused_in_words(tmp_path, shape, labels, words):
    path = tmp_path / "wrong.npz"
    numpy.savez(path, images=numpy.zeros(shape, "uint8"), labels=numpy.array(labels))
    with pytest.raises(ValueError, match=words):
        load_images("digits", str(path))
