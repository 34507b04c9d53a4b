"""What a compiled loop forgets: names that Python carries to the next iteration, and Triton does not.

    following = pointer
    for t in range(steps):
        use(following)
        following = pointer
        pointer -= stride

Triton visits the body of a loop once to see which names it rebinds.  Here ``following`` is the same
value before and after that visit, the first pointer, so it is not carried: every iteration, and all that
comes after the loop, reads the first pointer.  Nothing warns, and Triton's interpreter, which runs
Python, computes what was meant.

`forgotten` makes the intermediate code of a launch (no binary: a fraction of a second) and watches
Triton's front end while it does.  When the body of a loop has been made for good, every name from before
the loop that the loop does not carry must still be the value that it was.  One that is not, and that
Python reads again before it is bound again, in the next iteration or after the loop, is forgotten.  So
is a loop's own variable that is read after the loop, where Triton has nothing in its place.

``python -m projunn_kernels.tuning.aot --carried`` runs it over every variant of every kernel.
"""

import ast
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from projunn_kernels.tuning.binaries import Binary, source_and_target


@dataclass(frozen=True)
class Live:
    """The names whose values Python may still read: at the end of a loop's body, and after the loop."""

    at_head: frozenset[str]
    after: frozenset[str]


def live_names(function: ast.FunctionDef) -> dict[int, Live]:
    """What is live at every loop of a function, by the ``id`` of its node; every branch may be taken."""
    found: dict[int, Live] = {}
    _before(function.body, frozenset(), found)
    return found


def _before(body: list[ast.stmt], live: frozenset[str], found: dict[int, Live]) -> frozenset[str]:
    """The names that are live before the statements, if ``live`` is after them."""
    for statement in reversed(body):
        live = _before_one(statement, live, found)
    return live


def _before_one(node: ast.stmt, after: frozenset[str], found: dict[int, Live]) -> frozenset[str]:
    match node:
        case ast.Assign(targets=targets, value=value):
            return after - _names(*targets, context=ast.Store) | _names(*targets, value)
        case ast.AnnAssign(target=target, value=value):
            return after - _names(target, context=ast.Store) | _names(value)
        case ast.AugAssign(target=target, value=value):
            return after | _names(target, context=ast.Store) | _names(value)
        case ast.Return():
            return _names(node.value)
        case ast.If():
            branches = (_before(branch, after, found) for branch in (node.body, node.orelse))
            return _names(node.test).union(*branches)
        case ast.For():
            bound = _names(node.target, context=ast.Store)
            return _around(node, bound, frozenset(), after, found) | _names(node.iter)
        case ast.While():
            return _around(node, frozenset(), _names(node.test), after, found)
        case ast.With():
            return _before(node.body, after, found) | _names(*node.items)
    return after | _names(node)


def _around(
    node: ast.For | ast.While,
    bound: frozenset[str],
    read: frozenset[str],
    after: frozenset[str],
    found: dict[int, Live],
) -> frozenset[str]:
    """What is live at the head of a loop's body: ``bound`` is bound there, after ``read`` is read."""
    at_head = after | read
    while True:
        more = at_head | (_before(node.body, at_head, found) - bound)
        if more == at_head:
            found[id(node)] = Live(at_head, after)
            return at_head
        at_head = more


def _names(*nodes: ast.AST | None, context: type = ast.Load) -> frozenset[str]:
    return frozenset(
        each.id
        for node in nodes
        if node is not None
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, context)
    )


@dataclass
class _Loop:
    """A loop whose body is about to be made: the values before it, and what it carries or binds."""

    node: ast.For | ast.While
    before: dict[str, Any]
    carried: set[str]


def forgotten(what: Binary) -> list[str]:
    """One line for each name that the compiled kernel of a launch forgets, with its place."""
    lines = forgotten_of(*source_and_target(what), dict(what.options))
    return [f"{what.kernel}: {line}" for line in lines]


def forgotten_of(source: Any, target: Any, options: dict[str, Any]) -> list[str]:
    """`forgotten` of what `triton.compile` takes."""
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    backend = make_backend(target)
    parsed = backend.parse_options(options)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(parsed)
    with _watched() as found:
        source.make_ir(target, parsed, functions, backend.get_module_map(), context)
    return list(dict.fromkeys(found))


def flow(what: Binary) -> tuple[Any, ...]:
    """A key that launches share whose loops are alike: kernel and constants, but no sizes or dtypes."""
    sizes = {"BM", "BN", "BB", "BK", "B", "K", "S", "PANELS", "STAGES"}
    constants = tuple(
        (name, min(value, 2) if name in sizes else value)
        for name, value in what.constants
        if isinstance(value, int)
    )
    return what.kernel, tuple(kind == "constexpr" for _, kind in what.signature), constants


@contextlib.contextmanager
def _watched() -> Iterator[list[str]]:
    """Inside, Triton's front end notes in the list what it forgets."""
    from triton.compiler import code_generator

    found: list[str] = []
    usual = code_generator.CodeGenerator

    class Watching(usual):
        """The code generator of one function; those of the functions it calls are others."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._dry_visits = 0  # that are under way: what they make is thrown away
            self._loops: list[_Loop] = []
            self._live: dict[int, Live] = {}

        def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
            self._live = live_names(node)
            return super().visit_FunctionDef(node)

        def _find_carries(self, node: Any, liveins: Any, ignore: Any = frozenset()) -> Any:
            before = dict(liveins)
            self._dry_visits += 1
            result = super()._find_carries(node, liveins, ignore)
            self._dry_visits -= 1
            if not self._dry_visits:
                self._loops.append(_Loop(node, before, {*result[0], *ignore}))
            return result

        def visit_compound_statement(self, statements: Any) -> Any:
            super().visit_compound_statement(statements)
            here = self._loops and self._loops[-1].node.body is statements
            if here and not self._dry_visits:
                loop = self._loops.pop()
                for name, value in loop.before.items():
                    if name not in loop.carried and not _same(value, self.lscope[name]):
                        self._note(loop.node, name, self._live[id(loop.node)].at_head)

        def visit_For(self, node: ast.For) -> Any:
            super().visit_For(node)
            variable = self.lscope.get(node.target.id)
            if not self._dry_visits and not isinstance(variable, code_generator.constexpr):
                self._note(node, node.target.id, self._live[id(node)].after)

        def _note(self, node: ast.For | ast.While, name: str, live: frozenset[str]) -> None:
            if name in live:
                line = self.begin_line + node.lineno
                found.append(f"{self.file_name}:{line}: the loop forgets {name!r}")

    code_generator.CodeGenerator = Watching
    try:
        yield found
    finally:
        code_generator.CodeGenerator = usual


def _same(one: Any, other: Any) -> bool:
    """Whether two values of Triton's front end are one value of the intermediate code."""
    if one is other:
        return True
    if not (hasattr(one, "_flatten_ir") and hasattr(other, "_flatten_ir")):
        return one == other
    handles: tuple[list[Any], list[Any]] = ([], [])
    one._flatten_ir(handles[0])
    other._flatten_ir(handles[1])
    return handles[0] == handles[1] and one.type == other.type
