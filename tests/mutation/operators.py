"""Small wrong changes of a Python source, each at one place: the faults that a test suite ought to notice."""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_PAIRS = (
    ("sum", "mean"),
    ("min", "max"),
    ("amin", "amax"),
    ("minimum", "maximum"),
    ("argmin", "argmax"),
    ("clamp_min", "clamp_max"),
    ("any", "all"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("new_zeros", "new_ones"),
    ("nanmean", "nansum"),
)
NAMES = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
#: methods and functions of one argument that can be left out
DROPPED = {
    *("detach", "clone", "copy", "contiguous", "abs", "square", "sqrt", "rsqrt", "exp", "log", "t", "flip", "relu"),
    *("double", "float", "long", "bool", "sort", "fliplr", "softmax", "log_softmax", "normalize", "deepcopy"),
    *("clamp", "clamp_min", "clamp_max", "nan_to_num", "round", "floor"),
}
#: keywords and calls whose numbers are axes: 0 and 1 are exchanged there
AXES = {"dim", "axis"}
REDUCTIONS = {
    *("sum", "mean", "amax", "amin", "any", "all", "argmax", "argmin", "cumsum", "norm", "gather", "cat", "stack"),
    *("squeeze", "unsqueeze", "split", "std", "var", "argsort", "sort", "flip", "unbind", "index_add_", "softmax"),
}


@dataclass(frozen=True)
class Mutation:
    """One wrong change.

    Attributes:
        operator: its kind.
        line: where it is, from 1.
        start: first character of what is replaced.
        stop: the one after the last.
        text: what stands there instead.
        before: the changed lines as they were, without indentation.
        after: the same after the change.
    """

    operator: str
    line: int
    start: int = field(repr=False)
    stop: int = field(repr=False)
    text: str
    before: str
    after: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.stop :]


def mutations(source: str) -> list[Mutation]:
    """All mutations of a source, in its order.

    Left alone: docstrings, annotations, defaults, messages (f-strings, `raise`), assertions and `__repr__`s: what they
    say is no behaviour that tests should pin down.
    """
    lines = source.splitlines(keepends=True)
    offsets = [0, *itertools.accumulate(len(line) for line in lines)]

    def place(line: int, column: int) -> int:
        return offsets[line - 1] + len(lines[line - 1].encode()[:column].decode())  # ast counts bytes

    found = set()
    for node, parent in _walk(ast.parse(source)):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, stop = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        for operator, changed in _changes(node, parent):
            text = ast.unparse(changed)
            if isinstance(changed, (ast.Compare, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.IfExp)):
                text = f"({text})"  # whatever stands around it
            mutated = source[:start] + text + source[stop:]
            first, tail = source.rfind("\n", 0, start) + 1, len(source) - source.find("\n", stop)
            before, after = (" ".join(s[first : len(s) - tail].split()) for s in (source, mutated))
            if ast.dump(changed) != ast.dump(node):
                found.add(Mutation(operator, node.lineno, start, stop, text, before, after))
    return sorted(found, key=lambda m: (m.start, m.stop, m.operator, m.text))


def _walk(tree: ast.Module) -> Iterator[tuple[ast.stmt | ast.expr, ast.AST]]:
    """Statements and expressions that may be changed, with their parents."""

    def visit(node: ast.AST, parent: ast.AST) -> Iterator[tuple[ast.stmt | ast.expr, ast.AST]]:
        if isinstance(node, (ast.JoinedStr, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.arguments)):
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in ("__repr__", "extra_repr"):
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.AnnAssign) and isinstance(parent, ast.ClassDef):
            return
        if isinstance(node, (ast.stmt, ast.expr)) and node is not parent:
            yield node, parent
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, node)

    yield from visit(tree, tree)


def _changes(node: ast.stmt | ast.expr, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for kind, change in _CHANGES.items():
        if isinstance(node, kind):
            yield from change(node, parent)


def _compare(node: ast.Compare, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for index, op in enumerate(node.ops):
        for other in COMPARISONS[type(op)]:
            ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
            yield "comparison", ast.Compare(node.left, ops, node.comparators)


def _binary(node: ast.BinOp, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if type(node.op) in ARITHMETIC:
        yield "arithmetic", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)


def _unary(node: ast.UnaryOp, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.op, (ast.Not, ast.Invert, ast.USub)) and not isinstance(node.operand, ast.Constant):
        yield "negation dropped", node.operand


def _boolean(node: ast.BoolOp, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    yield "and / or", ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)


def _constant(node: ast.Constant, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.value, bool):
        yield "boolean", ast.Constant(not node.value)
    elif isinstance(node.value, int) and _is_axis(node, parent):
        yield "axis", ast.Constant(1 if node.value == 0 else 0)
    elif isinstance(node.value, (int, float)):
        yield "constant", ast.Constant(node.value + 1)


def _is_axis(node: ast.Constant, parent: ast.AST) -> bool:
    if isinstance(parent, ast.keyword):
        return parent.arg in AXES
    return isinstance(parent, ast.Call) and _name(parent.func) in REDUCTIONS


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _call(node: ast.Call, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    name = _name(node.func)
    if name in NAMES:
        function = copy.copy(node.func)
        setattr(function, "attr" if isinstance(function, ast.Attribute) else "id", NAMES[name])
        yield "function", ast.Call(function, node.args, node.keywords)
    if name in DROPPED:
        if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value):
            yield "call dropped", node.func.value
        elif node.args and not isinstance(node.args[0], ast.Starred):
            yield "call dropped", node.args[0]
    for index, keyword in enumerate(node.keywords):
        if keyword.arg != "device":  # all devices are one where there is no GPU
            yield (
                "argument left out",
                ast.Call(node.func, node.args, node.keywords[:index] + node.keywords[index + 1 :]),
            )


def _is_module(node: ast.expr) -> bool:
    return _name(node) in ("torch", "np", "F", "math", "copy", "functional", "linalg")


def _choice(node: ast.IfExp, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    yield "choice", node.body
    yield "choice", node.orelse


def _slice(node: ast.Slice, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for name in ("lower", "upper", "step"):
        if getattr(node, name) is not None:
            changed = copy.copy(node)
            setattr(changed, name, None)
            yield "bound left out", changed


def _statement(node: ast.stmt, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.AugAssign):
        if type(node.op) in ARITHMETIC:
            yield "arithmetic", ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
        yield "statement dropped", ast.Pass()
    elif isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await)):
        if not (isinstance(node.value, ast.Call) and "super" in ast.unparse(node.value.func)):
            yield "statement dropped", ast.Pass()
    elif (isinstance(node, ast.Assign) and not isinstance(node.targets[0], (ast.Name, ast.Tuple))) or isinstance(
        node, (ast.Delete, ast.Continue, ast.Break)
    ):
        yield "statement dropped", ast.Pass()


def _test(node: ast.expr, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(parent, (ast.If, ast.While, ast.comprehension)) and not isinstance(node, (ast.Compare, ast.Constant)):
        is_test = node in parent.ifs if isinstance(parent, ast.comprehension) else node is parent.test
        if is_test:
            yield "condition", ast.UnaryOp(ast.Not(), node)


_Change = Callable[..., Iterator[tuple[str, ast.AST]]]
_CHANGES: dict[type[ast.AST], _Change] = {
    ast.Compare: _compare,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.BoolOp: _boolean,
    ast.Constant: _constant,
    ast.Call: _call,
    ast.IfExp: _choice,
    ast.Slice: _slice,
    ast.stmt: _statement,
    ast.expr: _test,
}
