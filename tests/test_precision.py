"""What PyTorch's settings for float32 products may change, and what they must not."""

import threading

import pytest
import torch

import projunn
from projunn import optim
from projunn_kernels import polish_, precision
from projunn_kernels.launching import dot_precision

MATMULS = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


def settings():
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    return older, *(matmul.fp32_precision for matmul in MATMULS)


def by_the_older(setting):
    torch.set_float32_matmul_precision(setting)


def by_the_newer(setting):
    torch.backends.cuda.matmul.fp32_precision = {"high": "tf32", "highest": "ieee"}[setting]


@pytest.fixture(autouse=True)
def restored():
    older, *newer = settings()
    yield
    torch.set_float32_matmul_precision(older)
    for matmul, value in zip(MATMULS, newer, strict=True):
        matmul.fp32_precision = value


EITHER_WAY = pytest.mark.parametrize("set_precision", [by_the_older, by_the_newer])


@EITHER_WAY
def test_kernels_multiply_as_the_setting_says(set_precision):
    set_precision("high")
    assert dot_precision(torch.float32) == "tf32"
    set_precision("highest")
    assert dot_precision(torch.float32) == "tf32x3"


@EITHER_WAY
def test_exact_products_whatever_the_setting_and_the_setting_comes_back(set_precision):
    set_precision("high")
    before = settings()
    with precision.exact_products:
        assert all(matmul.fp32_precision in ("ieee", "none") for matmul in MATMULS)
        with precision.exact_products:
            pass
        assert precision.may_be_inexact()  # a second thread must take part
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert settings() == before


def test_the_setting_comes_back_after_an_error():
    torch.set_float32_matmul_precision("medium")
    before = settings()
    with pytest.raises(ZeroDivisionError), precision.exact_products:
        1 / 0  # noqa: B018
    assert settings() == before


def test_the_last_of_several_threads_puts_the_setting_back():
    torch.set_float32_matmul_precision("high")
    before, inside, leave = settings(), threading.Event(), threading.Event()

    def other():
        with precision.exact_products:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with precision.exact_products:
        thread.start()
        assert inside.wait(10)
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    leave.set()
    thread.join()
    assert settings() == before


class Seen(torch.overrides.TorchFunctionMode):
    """Notes the setting at each product."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("matmul", "bmm", "mm", "baddbmm_", "addmm_"):
            self.found.append(torch.backends.cuda.matmul.fp32_precision)
        return function(*args, **(kwargs or {}))


@EITHER_WAY
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "SGDG"])
def test_optimizers_multiply_exactly(set_precision, rank, name):
    weight = projunn.UnitaryParameter(torch.linalg.qr(torch.randn(24, 24)).Q)
    options = {"unitary_lr": 0.1} if name == "AdamW" else {}
    options |= {"polish_every": 1} if name != "SGDG" else {}
    optimizer = getattr(optim, name)([weight], lr=0.1, rank=rank, **options)
    set_precision("high")
    with Seen() as seen:
        for _ in range(2):
            weight.grad = torch.randn(24, 24)
            optimizer.step()
    assert "tf32" not in seen.found
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_diagnostics_and_the_polish_multiply_exactly():
    torch.set_float32_matmul_precision("high")
    weight = torch.linalg.qr(torch.randn(5, 9, 9)).Q
    with Seen() as seen:
        projunn.unitarity_defect(weight)
        polish_(weight)
    assert seen.found
    assert "tf32" not in seen.found


def test_diagnostics_in_compiled_code():
    weight = torch.linalg.qr(torch.randn(9, 9)).Q
    measure = torch.compile(projunn.unitarity_defect, backend="eager", fullgraph=True)
    torch.testing.assert_close(measure(weight), projunn.unitarity_defect(weight))


@EITHER_WAY
def test_recurrences_and_convolutions_run_under_either_setting(set_precision):
    set_precision("high")
    projunn.nn.UnitaryRNN(3, 8)(torch.randn(4, 2, 3))[0].sum().backward()
    projunn.nn.UnitaryConv2d(3, 3, spatial_size=6)(torch.randn(2, 3, 6, 6)).sum().backward()
