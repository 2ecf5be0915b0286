"""Names of the tensors that a forward pass computes: modules and name scopes, then the operation: "layer1/0/Conv2d:0".

A name that was given before gets a number: "Mul:0", "Mul:0/1". Operations are torch's functions in capitals.
"""

from __future__ import annotations

import contextlib
from typing import Any, Collection, Dict, Iterator, List, Optional, Sequence

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class OperationNames:
    """Names the results of one forward pass in order.

    Args:
        wanted: names of tensors to keep a copy of.
        use_modules: whether modules give their names to what they compute.
    """

    def __init__(self, wanted: Collection[str] = (), use_modules: bool = True) -> None:
        self._wanted = wanted
        self._use_modules = use_modules
        self._scopes: List[str] = []
        self._counts: Dict[str, int] = {}
        self.names: List[str] = []
        self.kept: Dict[str, torch.Tensor] = {}

    def add_inputs(self, tensors: Sequence[torch.Tensor]) -> None:
        """Name the inputs of the model: input, input/1, ..."""
        for tensor in tensors:
            self._add("input", tensor)

    def add(self, function: str, results: Sequence[torch.Tensor]) -> List[str]:
        """Name the results of a call of one of torch's functions, and return the names."""
        operation = "".join(word.capitalize() for word in function.strip("_").split("_"))
        scope = "/".join([*self._scopes, operation])
        return [self._add(f"{scope}:{index}", result) for index, result in enumerate(results)]

    def _add(self, base: str, tensor: torch.Tensor) -> str:
        count = self._counts.get(base, 0)
        self._counts[base] = count + 1
        name = f"{base}/{count}" if count else base
        self.names.append(name)
        if name in self._wanted:
            self.kept[name] = tensor.detach().clone()
        return name

    def enter(self, scope: str) -> None:
        """Name what follows after this scope too."""
        self._scopes.append(scope)

    def leave(self) -> None:
        """End the innermost scope."""
        self._scopes.pop()

    @contextlib.contextmanager
    def inside(self, model: torch.nn.Module) -> Iterator[None]:
        """While entered, the modules of `model` are scopes while they run."""
        if not (self._use_modules and isinstance(model, torch.nn.Module)):
            yield
            return
        path_of = {id(module): path for path, module in model.named_modules()}
        running: List[str] = [""]

        def begin(module: torch.nn.Module, _: Any) -> None:
            path: Optional[str] = path_of.get(id(module))
            if path:
                outer = f"{running[-1]}."
                self.enter((path[len(outer) :] if path.startswith(outer) else path).replace(".", "/"))
                running.append(path)

        def end(module: torch.nn.Module, _: Any, __: Any) -> None:
            if path_of.get(id(module)):
                running.pop()
                self.leave()

        handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
