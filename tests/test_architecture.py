"""The shape of the source: which way imports run, and how large its parts may grow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"projunn": ROOT, "projunn_kernels": ROOT / "kernels", "bench": ROOT}


def modules():
    """Every module of the source: its name, its file, and its syntax tree."""
    for package, root in SOURCES.items():
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, file, ast.parse(file.read_text())


MODULES = {name: (file, tree) for name, file, tree in modules()}


def imports_of(name, nodes):
    """The modules of ours that the statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (name.value for name in node.args if getattr(name, "value", None) in MODULES)


def at_import_time(tree):
    """The statements that run, or that a type checker follows, when a module is imported."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            todo += [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]


def test_no_circle_of_imports():
    """Also within functions.  A package's own page imports what it exports: that is no circle."""
    graph = {
        name: {
            other
            for other in imports_of(name, ast.walk(tree))
            if other != name and not name.startswith(f"{other}.")
        }
        for name, (_, tree) in MODULES.items()
    }
    while True:  # without what imports nothing that is left, and what nothing that is left imports
        left = {name: others & graph.keys() for name, others in graph.items()}
        imported = set().union(*left.values())
        left = {name: others for name, others in left.items() if others and name in imported}
        if left == graph:
            break
        graph = left
    assert graph == {}


def test_imports_run_one_way():
    """bench -> projunn -> projunn_kernels -> torch, triton; also within functions."""
    below = {"projunn_kernels": {"projunn", "bench"}, "projunn": {"bench"}, "bench": set()}
    for name, (_, tree) in MODULES.items():
        forbidden = below[name.split(".")[0]]
        found = {other.split(".")[0] for other in imports_of(name, ast.walk(tree))}
        assert not found & forbidden, name


def test_triton_is_imported_where_kernels_are_launched_and_nowhere_else():
    allowed = ("language", "kernels", "launch", "launching", "tuning")
    for name, (_, tree) in MODULES.items():
        if name.startswith("bench"):
            continue
        found = {
            alias.name.split(".")[0]
            for node in at_import_time(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        if "triton" in found:
            assert name.startswith("projunn_kernels."), name
            assert set(name.split(".")) & set(allowed), name


# torch.optim.RMSprop takes eleven, and SpinQuant's SGDG nine.
AS_OTHERS_HAVE_IT = {("projunn.optim.rmsprop", "__init__"), ("projunn.optim.sgdg", "__init__")}


def test_files_of_tests_stay_small():
    long = [f for f in (ROOT / "tests").rglob("*.py") if len(f.read_text().splitlines()) > 400]
    assert not long


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_small(name):
    """400 lines a file, 8 parameters by position a function; Triton kernels take what they take."""
    file, tree = MODULES[name]
    assert len(file.read_text().splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            count = len([n for n in names if n not in ("self", "cls", "ctx")])
            is_kernel = any("jit" in ast.unparse(one) for one in node.decorator_list)
            assert is_kernel or count <= 8 or (name, node.name) in AS_OTHERS_HAVE_IT, node.name


def test_no_module_is_shadowed_by_something_that_its_package_exports():
    for name, (file, tree) in MODULES.items():
        if file.name != "__init__.py":
            continue
        here = {other.rpartition(".")[2] for other in MODULES if other.rpartition(".")[0] == name}
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                defined |= {
                    alias.asname or alias.name
                    for alias in node.names
                    if f"{node.module}.{alias.name}" not in MODULES
                }
        assert not here & defined, name


def test_no_file_has_a_name_that_says_nothing():
    vague = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert not [name for name in MODULES if vague & set(name.split("."))]
