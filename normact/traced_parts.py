"""A network as parts whose data flow is known: all of it where it can be traced, else what is inside."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import torch
import torch.fx
from torch import nn

from normact.tracing import FlowTracer, optional_arguments


class TracedPart(NamedTuple):
    """A part of a network whose data flow is known.

    Args:
        path: of the part in the network; "" for all of it.
        graph: its calls.
        modules: of the part, by path in it.
        tracer: that made the graph.
    """

    path: str
    graph: torch.fx.Graph
    modules: Dict[str, nn.Module]
    tracer: FlowTracer

    @property
    def callers(self) -> Dict[torch.fx.Node, str]:
        """Node -> path, in the part, of the module whose forward made it."""
        return self.tracer.callers


class _Opaque:
    """The modules whose code cannot be traced and holds nothing that is looked for: one call each in a graph.

    A convolution that pads by the size of its input is one.
    """

    def __init__(self, holds: Callable[[nn.Module], bool]) -> None:
        self._holds = holds
        self._known: Dict[nn.Module, bool] = {}

    def __call__(self, module: nn.Module) -> bool:
        if module not in self._known:
            self._known[module] = not any(self._holds(part) for part in module.modules()) and not self._traces(module)
        return self._known[module]

    def _traces(self, module: nn.Module) -> bool:
        try:
            FlowTracer(is_opaque=lambda part: part is not module and self(part)).trace(module)
        # Whatever the module's own code raises when it meets a symbolic value.
        except Exception:
            return False
        return True


def traced_parts(
    part: nn.Module,
    holds: Callable[[nn.Module], bool],
    failures: List[Tuple[str, str]],
    path: str = "",
    opaque: Optional[_Opaque] = None,
) -> Iterator[TracedPart]:
    """Yield the network as one part where it can be traced; else the parts of its children, and so on down.

    Args:
        part: the network.
        holds: parts that hold no module of which this is true are left out.
        failures: receives (path, error) of every failed trace.
        path: of the part in the network.
        opaque: what is known of the network's modules so far.
    """
    if not any(holds(module) for module in part.modules()):
        return
    opaque = opaque or _Opaque(holds)
    try:
        graph, tracer = _traced(part, path, opaque)
    # Whatever the network's own code raises when it meets a symbolic value.
    except Exception as error:
        if not holds(part):
            if not isinstance(part, (nn.ModuleList, nn.ModuleDict)):  # these have no forward to fail
                failures.append((path, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
            for name, child in _parts_inside(part):
                yield from traced_parts(child, holds, failures, f"{path}.{name}" if path else name, opaque)
        return
    yield TracedPart(path, graph, dict(part.named_modules()), tracer)


def _traced(part: nn.Module, path: str, opaque: _Opaque) -> Tuple[torch.fx.Graph, FlowTracer]:
    """Trace a part with all its code, or else without that of modules which cannot be traced themselves."""
    defaults = _defaults(part, path) or None
    tracer = FlowTracer()
    try:
        return tracer.trace(part, defaults), tracer
    # Whatever the network's own code raises when it meets a symbolic value.
    except Exception:
        tracer = FlowTracer(is_opaque=opaque)
        return tracer.trace(part, defaults), tracer


def trace_again(part: TracedPart) -> FlowTracer:
    """Return a tracer with the calls that a part's code makes now; where it fails, up to there."""
    tracer = part.tracer.again()
    module = part.modules[""]
    try:
        tracer.trace(module, _defaults(module, part.path) or None)
    # Whatever the network's own code raises when it meets a symbolic value or another module.
    except Exception:
        pass
    return tracer


def _parts_inside(part: nn.Module) -> Iterator[Tuple[str, nn.Module]]:
    """Yield the children of a part; of an nn.Sequential that the part's code takes apart, its children.

    What stands in a row there may be used otherwise: `y = self.stages[:2](x)`, `for layer in self.stages`.
    """
    taken_apart = _taken_apart(part)
    for name, child in part.named_children():
        if isinstance(child, nn.Sequential) and name in taken_apart:
            for inner, grandchild in child.named_children():
                yield f"{name}.{inner}", grandchild
        else:
            yield name, child


def _taken_apart(part: nn.Module) -> Set[str]:
    """Return names of the attributes that the code of a part's class indexes or loops over; all where it is unknown."""
    expressions: List[ast.AST] = []
    for kind in type(part).__mro__:
        if kind.__module__.startswith("torch.nn.") or not issubclass(kind, nn.Module):
            continue
        try:
            code = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):
            return {name for name, _ in part.named_children()}
        for node in ast.walk(code):
            if isinstance(node, ast.Subscript):
                expressions.append(node.value)
            elif isinstance(node, (ast.For, ast.comprehension)):
                expressions.append(node.iter)
    return {node.attr for e in expressions for node in ast.walk(e) if isinstance(node, ast.Attribute)}


def _defaults(part: nn.Module, path: str) -> Dict[str, Any]:
    """Return values of the optional arguments under which a part is traced.

    Raises:
        TypeError: a part of the network, unlike the network itself, may be called with or without them.
    """
    optional = optional_arguments(part)
    if path and optional:
        raise TypeError(f"its forward has optional arguments: {', '.join(optional)}")
    parameters = inspect.signature(part.forward).parameters
    return {
        name: parameters[name].default
        for name in optional
        if parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
    }
