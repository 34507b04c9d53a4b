"""Operations and kernels declare themselves: nothing is forgotten, and no unknown name runs anything."""

import ast
from pathlib import Path

import pytest
import torch

import projunn
import projunn_kernels
from projunn_kernels import FusedStep, apply_nonlinearity, fused_step_, recurrence, retract_, rotation
from projunn_kernels.configs.kernel import KERNELS
from projunn_kernels.operation import OPERATIONS
from projunn_kernels.retraction.rotations import RETRACTIONS, named

PACKAGE = Path(projunn_kernels.__file__).parent
INTERPRETED = pytest.param("interpret", marks=pytest.mark.interpreter_only)
BACKENDS = pytest.mark.parametrize("backend", ["torch", INTERPRETED])


def triton_kernels():
    """The Triton kernels of the package, by their source: what is called ``..._kernel``."""
    for file in sorted([*PACKAGE.glob("*/kernels.py"), *PACKAGE.glob("*/kernels/*.py")]):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                yield node.name


def launched_kernels():
    """The names that any call of ``launch`` launches."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if called and node.func.id == "launch" and isinstance(node.args[0], ast.Name):
                yield node.args[0].id


def test_every_kernel_is_declared_once():
    declared = [name for kernel in KERNELS.values() for name in kernel.functions]
    assert sorted(declared) == sorted(set(declared)) == sorted(triton_kernels())


def test_nothing_but_declared_kernels_is_launched():
    declared = {name for kernel in KERNELS.values() for name in kernel.functions}
    launched = {name for name in launched_kernels() if name.endswith("_kernel")}
    assert launched
    assert launched <= declared


def test_every_declared_kernel_belongs_to_an_operation():
    belonging = [kernel.name for operation in OPERATIONS.values() for kernel in operation.kernels]
    assert sorted(belonging) == sorted(KERNELS)


def test_every_operation_is_registered_with_torch():
    for name in OPERATIONS:
        assert hasattr(torch.ops.projunn, name)


def test_a_retraction_is_called_what_its_list_calls_it():
    assert all(name == one.name for name, one in RETRACTIONS.items())
    for one in RETRACTIONS.values():
        assert (one.dense is None) != (one.whole is None)


def step_of(retraction):
    weight = torch.eye(4).expand(1, 4, 4).contiguous()
    columns = torch.randn(1, 4, 1)
    return FusedStep(
        weights=[weight],
        directions=[torch.randn(1, 4, 4)],
        bases=[columns],
        probes=[columns.clone()],
        skipped=[torch.zeros((), dtype=torch.int64)],
        missed=[torch.zeros(1, dtype=torch.int64)],
        rate=0.1,
        retraction=retraction,
    )


@BACKENDS
@pytest.mark.parametrize(
    "run",
    [
        lambda name: named(name),
        lambda name: rotation(torch.randn(2, 2), name, 1e-7),
        lambda name: rotation(torch.randn(3, 4, 4), name, 1e-7),
        lambda name: rotation(torch.randn(3, 2, 2, dtype=torch.complex128), name, 1e-7),
        lambda name: retract_(torch.eye(4)[None], torch.randn(1, 4, 1), torch.randn(1, 4, 1), name),
        lambda name: retract_(torch.eye(9), torch.randn(9, 9), torch.randn(9, 9), name),
        lambda name: fused_step_(step_of(name)),
        lambda name: torch.ops.projunn.retract_(
            torch.eye(4), torch.randn(4, 1), torch.randn(4, 1), name, None
        ),
    ],
)
def test_an_unknown_retraction_raises_in_every_path(run, backend):
    with projunn.backend(backend):
        for name in ("qr", "EXP", ""):
            with pytest.raises(ValueError, match=f"retraction: got {name!r}, wanted one of exp, polar"):
                run(name)


@BACKENDS
def test_an_unknown_nonlinearity_raises_in_every_path(backend):
    with pytest.raises(ValueError, match="nonlinearity: got 'gelu', wanted one of"):
        apply_nonlinearity(torch.randn(3), torch.randn(3), "gelu")
    with (
        projunn.backend(backend),
        pytest.raises(ValueError, match="nonlinearity: got 'gelu', wanted one of"),
    ):
        recurrence(torch.randn(2, 3, 8), torch.randn(3, 8), torch.eye(8), torch.randn(8), "gelu")
