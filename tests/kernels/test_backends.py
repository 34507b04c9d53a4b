"""The choice of the backend."""

import subprocess
import sys

import pytest
import torch

import projunn
from projunn_kernels import backends
from projunn_kernels.backends import chosen_backend, uses_triton


@pytest.fixture(autouse=True)
def read_again():
    """The environment is read once in a process; here it is read once in a test."""
    backends.at_start.cache_clear()
    yield
    backends.at_start.cache_clear()


def test_default_setter_and_context(monkeypatch):
    monkeypatch.delenv("PROJUNN_BACKEND", raising=False)
    assert chosen_backend() == ("auto", "default")
    with projunn.backend("torch"):
        assert chosen_backend() == ("torch", "projunn.backend")
        with projunn.backend("auto"):
            assert chosen_backend()[0] == "auto"
        assert chosen_backend()[0] == "torch"
    assert chosen_backend() == ("auto", "default")


def test_environment(monkeypatch):
    monkeypatch.setenv("PROJUNN_BACKEND", "torch")
    assert chosen_backend() == ("torch", "PROJUNN_BACKEND")
    backends.at_start.cache_clear()
    monkeypatch.setenv("PROJUNN_BACKEND", "cuda")
    with pytest.raises(ValueError, match="PROJUNN_BACKEND: got 'cuda'"):
        chosen_backend()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_without_a_gpu_raises_and_changes_nothing():
    with pytest.raises(RuntimeError, match="name: backend 'triton' is not available"):
        projunn.backend("triton")
    assert chosen_backend()[1] == "default"


def test_without_triton_explicit_choices_raise_and_auto_falls_back(monkeypatch):
    monkeypatch.setattr(backends, "triton_installed", lambda: False)
    for name in ("triton", "interpret"):
        with pytest.raises(RuntimeError, match="triton is not installed"):
            projunn.backend(name)
    assert not uses_triton(torch.ones(1))


@pytest.mark.requires("triton")
def test_auto_falls_back_where_triton_is_broken_or_too_old(monkeypatch):
    """Every step of a GPU's tensors ended in an ImportError."""

    class OnGPU:
        is_cuda, dtype = True, torch.float32

    def broken():
        raise ImportError("cannot import name 'gdc_wait' from 'triton.language.extra.cuda'")

    backends.kernels_work.cache_clear()
    assert uses_triton(OnGPU())
    backends.kernels_work.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("projunn_kernels.backends.kernels", broken)
        with pytest.warns(RuntimeWarning, match="kernels cannot be imported with it.*ImportError.*gdc"):
            assert not uses_triton(OnGPU())
        assert not uses_triton(OnGPU())  # one warning
    backends.kernels_work.cache_clear()


def test_what_runs_where(kernels):
    assert not uses_triton(torch.ones(1))
    one = torch.ones(1, device=kernels.device)
    with kernels.backend():
        assert uses_triton(one)
        assert uses_triton(one.to(torch.complex64))
        assert not uses_triton(one.double())
        with projunn.backend("torch"):
            assert not uses_triton(one)


@pytest.mark.requires_cuda
def test_a_gpu_runs_the_kernels_unasked_and_refuses_tensors_of_the_host():
    one = torch.ones(1, device="cuda")
    assert uses_triton(one)
    with projunn.backend("triton"):
        assert uses_triton(one)
        with pytest.raises(RuntimeError, match="needs GPU tensors, got one on cpu"):
            uses_triton(torch.ones(1))


@pytest.mark.requires("triton")
def test_interpreter_must_come_first():
    code = """
import os, sys
os.environ.pop("TRITON_INTERPRET", None)
import triton, projunn
try:
    projunn.backend("interpret")
except RuntimeError as error:
    sys.exit(0 if "TRITON_INTERPRET=1" in str(error) else 1)
sys.exit(2)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name():
    with pytest.raises(ValueError, match="name: got 'tpu', wanted one of auto"):
        projunn.backend("tpu")


@pytest.mark.requires_cpp
def test_operators_conjugate_in_graphs_compiled_by_inductor():
    from projunn_kernels.operation import Operation

    def body(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        pulled = torch.mv(torch.view_as_complex(matrix).mT, torch.view_as_complex(vector).conj()).conj()
        return torch.view_as_real(pulled.resolve_conj())

    adjoint = Operation(
        name="adjoint_for_a_test",
        eager=body,
        fake=lambda matrix, vector: torch.empty_like(vector),
        on="matrix",
    )
    matrix, vector = torch.randn(4, 4, 2), torch.randn(4, 2)
    expected = torch.view_as_complex(matrix).mH @ torch.view_as_complex(vector)

    def call():
        return adjoint(matrix=matrix, vector=vector)

    for run in (call, torch.compile(call, fullgraph=True)):
        torch.testing.assert_close(torch.view_as_complex(run()), expected)
