"""The graph in a file of torch.export.save, held to what a network needs before torch turns it into Python code.

torch trusts this JSON text: it looks up any name below `torch` as an operator, evaluates sizes and guards as Python,
imports what its trees name, and writes names of values into the source of a function. Here every text in it must be of
a kind that is known to be harmless, and what a forward pass does not need is left out.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, Dict, List

import torch

from configs.bounded_file import MIB, parse_json

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)  # it becomes a name in Python source
_WORDS = re.compile(r"[\w.+]*", re.ASCII)
_EQUATION = re.compile(r"[\w., >-]*", re.ASCII)  # what torch.einsum and modes such as "tanh" are given
_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)", re.ASCII)
_SYMBOLIC = re.compile(
    r"_operator\.(?:add|sub|mul|floordiv|truediv|mod|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|pow)"
    r"|math\.(?:ceil|floor|trunc)|torch\.sym_(?:int|float|max|min|not|ite)",
)
_HIGHER_ORDER = ("torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.higher_order.wrap_with_autocast")
# Operators of torch that touch files, and those that take their caller's word for what lies in memory.
_REFUSED_OPERATORS = re.compile(
    r"save|load|from_file|from_blob|warn|_print|set_.*|_?resize.*|.*(?:unsafe|storage|sparse|nested).*"
)
_UNSAFE_BUT_CHECKED = ("_unsafe_view",)  # as view; it is about gradients
# torch counts up to the number of a symbol, and writes numbers out.
_SYMBOL = re.compile(r"[a-z]+\d{1,6}", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,40}(?:\.\d{0,40})?(?:e[+-]?\d{1,2})?", re.ASCII)
_MOST_DIGITS = 1000
_EXPRESSIONS = {"Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Max", "Min", "Mod", "PythonMod"}
_EXPRESSIONS |= {"FloorDiv", "CeilDiv", "CleanDiv", "IntTrueDiv", "ModularIndexing", "CeilToInt", "FloorToInt"}
_EXPRESSIONS |= {"TruncToInt", "ToFloat", "Equality", "Unequality", "StrictLessThan", "StrictGreaterThan"}
_EXPRESSIONS |= {"LessThan", "GreaterThan", "And", "Or", "Not"}
_EXPRESSION_NODES = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.keyword, ast.Constant, ast.UnaryOp, ast.USub)
_TREES = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
# Where a text is more than words. Node metadata and guards are about where the graph came from; both hold Python.
_EMPTIED: Dict[str, Any] = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}


class GraphError(ValueError):
    """A graph that asks for more than operators on tensors; the message names what it asks for."""


MAX_BYTES = 64 * MIB  # a Swin transformer has 1.3; Python's form of it takes ten times as much


def checked_graph(content: bytes) -> bytes:
    """Return the JSON text of a graph without what a forward pass does not need.

    Raises:
        GraphError: a text in it is none that a network of operators on tensors needs.
        ValueError: no JSON.
    """
    return json.dumps(checked_words(content)).encode()


def checked_words(content: bytes) -> Any:
    """Return the values of a JSON text that holds names and numbers. Raises as checked_graph."""
    if len(content) > MAX_BYTES:
        raise GraphError(f"it describes itself in {len(content):,} bytes, over the limit of {MAX_BYTES:,}")
    return _checked(parse_json(content), "")


def _checked(value: Any, key: str) -> Any:
    if key in _EMPTIED:
        return _EMPTIED[key]
    if isinstance(value, dict):
        for name in value:
            _require(_SYMBOL if key == "range_constraints" else _WORDS, name, key or "key")
        return {name: _checked(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_checked(item, key) for item in value]
    if isinstance(value, str):
        _check_text(value, key)
    return value


def _check_text(text: str, key: str) -> None:
    if key in ("target", "as_operator"):
        _check_operator(text)
    elif key == "expr_str":
        _check_expression(text)
    elif key in ("in_spec", "out_spec"):
        _check_tree(parse_json(text))
    elif key in ("as_string", "as_strings"):
        _require(_EQUATION, text, key)
    elif key in ("class_fqn", "custom_obj_name"):
        raise GraphError(f"it holds an object of class {text!r}; expected operators on tensors alone")
    elif text and key in ("name", "as_name", "forward_arg_names"):
        _require(_NAME, text, key)
    else:
        _require(_WORDS, text, key)


def _require(pattern: "re.Pattern[str]", text: str, key: str) -> None:
    if not pattern.fullmatch(text):
        raise GraphError(f"its graph has the {key} {text[:80]!r}, which is not a plain name")


def _check_operator(text: str) -> None:
    if _SYMBOLIC.fullmatch(text) or text in _HIGHER_ORDER:
        return
    match = _OPERATOR.fullmatch(text)
    if match is None:
        raise GraphError(f"its graph calls {text[:80]!r}; expected operators torch.ops.aten.* on tensors alone")
    name, overload = match.groups()
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(getattr(packet, overload, None), torch._ops.OpOverload):
        raise GraphError(f"its graph calls {text[:80]!r}, which is not an operator of torch {torch.__version__}")
    if _REFUSED_OPERATORS.fullmatch(name) and name not in _UNSAFE_BUT_CHECKED:
        raise GraphError(f"its graph calls {text[:80]!r}, which reaches beyond tensors: refused")


def _check_expression(text: str) -> None:
    """Check a size such as Mul(Integer(4), Symbol('s77', positive=True)), which sympy evaluates as Python."""
    try:
        nodes: List[ast.AST] = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise GraphError(f"its graph has a size {text[:80]!r} that is not an expression") from error
    named = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        is_known = isinstance(node, _EXPRESSION_NODES)
        if isinstance(node, ast.Name):
            is_known = node.id in _EXPRESSIONS if id(node) in named else bool(_SYMBOL.fullmatch(node.id))
        if isinstance(node, ast.Call):
            is_known = isinstance(node.func, ast.Name)
        if isinstance(node, ast.keyword):
            value = getattr(node.value, "value", None)
            is_known = isinstance(value, int) and value <= _MOST_DIGITS  # precision=53, integer=True
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_known = bool(_SYMBOL.fullmatch(node.value) or _NUMBER.fullmatch(node.value))
        if not is_known:
            raise GraphError(f"its graph has a size {text[:80]!r}; expected arithmetic of numbers and symbols")


def _check_tree(tree: Any) -> None:
    """Check how inputs or outputs are nested, [1, {"type": ..., "context": ..., "children_spec": [...]}]."""
    waiting = [tree[1]]
    while waiting:
        spec = waiting.pop()
        context = parse_json(spec["context"]) if isinstance(spec["context"], str) else spec["context"]
        names = context if isinstance(context, list) else []
        is_plain = context is None or (isinstance(context, list) and all(isinstance(name, str) for name in names))
        if spec["type"] not in (None, *_TREES) or not is_plain:
            raise GraphError(f"its inputs or outputs are nested in {spec['type']!r}; expected tuples, lists and dicts")
        for name in names:
            _require(_NAME, name, "input name")
        waiting.extend(spec["children_spec"])
