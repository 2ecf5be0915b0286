"""What a network's own code asks its modules: seen while it runs, and in code that does not."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Callable, Collection, Dict, Iterator, List, Optional, Set, Tuple

from torch import nn

Reads = Dict[nn.Module, Set[str]]
# What only batch norm has: a norm whatever name the code has for it.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def watched_reads(modules: Collection[nn.Module]) -> Iterator[Reads]:
    """Note which attributes of modules code beside torch's and this package's reads meanwhile."""
    reads: Reads = {module: set() for module in modules}

    def watching(read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        def read_and_note(self: Any, name: str) -> Any:
            if self in reads:
                reader = sys._getframe(1)
                is_its_own = next(iter(reader.f_locals.values()), None) is self  # a method of the module itself
                if not is_its_own and not str(reader.f_globals.get("__name__")).startswith(("torch.", "normact.")):
                    reads[self].add(name)
            return read(self, name)

        return read_and_note

    kinds = {type(module): vars(type(module)).get("__getattribute__") for module in modules}
    watchers = {kind: watching(kind.__getattribute__) for kind in kinds}
    for kind, watcher in watchers.items():
        kind.__getattribute__ = watcher  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        for kind, own in kinds.items():
            if own is None:
                del kind.__getattribute__
            else:
                kind.__getattribute__ = own  # type: ignore[method-assign]


def reads_in_code(module: nn.Module, of: Collection[nn.Module]) -> Iterator[Tuple[nn.Module, str]]:
    """Yield those of some modules that the code of a module around them asks for an attribute, with its name.

    The code is that of its forward; it is read and not run. A norm under a name that the code gives it itself is known
    where it is asked for running statistics.
    """
    for _, self_name, node in _nodes(type(module), "forward"):
        if not isinstance(node, ast.Attribute):
            continue
        owner = _module_named(node.value, self_name, module)
        if owner is not None and owner in of:
            yield owner, node.attr
        elif owner is None and node.attr in _STATISTICS:
            inside = (part for part in module.modules() if part in of and hasattr(part, node.attr))
            yield from ((part, node.attr) for part in inside)


def kinds_asked(module: nn.Module, of: Collection[nn.Module], method: str) -> Iterator[Tuple[nn.Module, str]]:
    """Yield those of some modules of which a method of a module around them asks whether they are of a class.

    That is isinstance(part, kind), type(part) is kind and type(part) == kind, with a yes for an answer: another module
    in its place would give another. With it comes the name of its class. The code is read and not run.
    """
    for function, self_name, node in _nodes(type(module), method):
        question = _question(node)
        if question is None:
            continue
        asked = _module_named(question[0], self_name, module)
        kinds = _classes(question[1], function)
        for part in module.modules() if asked is None else [asked]:
            if part in of and isinstance(part, kinds):
                yield part, type(part).__name__


def _question(node: ast.AST) -> Optional[Tuple[ast.expr, ast.expr]]:
    """Return (object, classes) of an expression that asks for an object's class."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 2:
        return (node.args[0], node.args[1]) if node.func.id == "isinstance" else None
    if isinstance(node, ast.Compare) and isinstance(node.left, ast.Call) and isinstance(node.left.func, ast.Name):
        is_of_type = node.left.func.id == "type" and len(node.left.args) == 1
        return (node.left.args[0], node.comparators[0]) if is_of_type else None
    return None


def _classes(node: ast.expr, function: FunctionType) -> Tuple[type, ...]:
    """Return the classes that an expression of dotted names, or a tuple of such, means to a function."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return tuple(kind for part in node.elts for kind in _classes(part, function))
    names: List[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    value: Any = function.__globals__.get(node.id) if isinstance(node, ast.Name) else None
    for name in reversed(names):
        value = getattr(value, name, None)
    return (value,) if isinstance(value, type) else ()


def _nodes(kind: type, method: str) -> Iterator[Tuple[FunctionType, str, ast.AST]]:
    """Yield (function, name of self, node) of the code of a class's method, and of the methods that it names."""
    left, known = [method], {method}
    while left:
        function = getattr(kind, left.pop(), None)
        if not inspect.isfunction(function) or str(function.__module__).startswith(("torch.", "normact.")):
            continue
        self_name = next(iter(inspect.signature(function).parameters), "")
        for node in _parsed(function):
            yield inspect.unwrap(function), self_name, node
            named = _named_of_self(node, self_name)
            if named and named not in known:
                known.add(named)
                left.append(named)


@functools.lru_cache(maxsize=1024)
def _parsed(function: FunctionType) -> Tuple[ast.AST, ...]:
    """Return the nodes of a function's code; none where there is no source."""
    try:
        return tuple(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))))
    except (OSError, SyntaxError):
        return ()


def _named_of_self(node: ast.AST, self_name: str) -> str:
    is_of_self = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self_name
    return node.attr if is_of_self and isinstance(node, ast.Attribute) else ""


def _module_named(node: ast.expr, self_name: str, module: nn.Module) -> Optional[nn.Module]:
    """Return the module that self.a.b names; None where the expression is another or names none."""
    names: List[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id != self_name:
        return None
    owner: Optional[nn.Module] = module
    for name in reversed(names):
        owner = None if owner is None else owner._modules.get(name)
    return owner
