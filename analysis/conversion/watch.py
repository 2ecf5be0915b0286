"""Which norms of a network are followed by an activation, seen while it runs: what tracing has to find."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Set, Tuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from normact.recognize import describe_norm

_NORMS = {"batch_norm", "group_norm", "instance_norm"}
_ACTIVATIONS = {
    name + suffix
    for name in (
        *("relu", "relu6", "leaky_relu", "prelu", "elu", "celu", "selu", "silu", "gelu", "mish", "softplus"),
        *("hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "logsigmoid", "softsign"),
    )
    for suffix in ("", "_")
}
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"}
_QUESTIONS = {"__get__", "size", "dim", "numel", "is_contiguous", "stride", "type", "is_floating_point"}


class PairWatch(TorchFunctionMode):
    """Follows the outputs of norms to the operations that take them.

    Attributes:
        uses: path of a norm -> names of the operations that took its output; dropout hands it on.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.uses: Dict[str, List[str]] = {}
        self._outputs: Dict[int, Tuple[str, Tensor]] = {}
        self._running: List[str] = []
        self._handles = []
        for path, module in model.named_modules():
            if describe_norm(module) is not None and not isinstance(module, torch.jit.ScriptModule):
                self._handles.append(module.register_forward_pre_hook(self._entering(path)))
                self._handles.append(module.register_forward_hook(self._leaving))

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        taken = {id(value) for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)}
        taken = taken & set(self._outputs) if name not in _QUESTIONS else set()
        paths = [self._outputs[key][0] for key in taken]
        result = func(*args, **kwargs)
        if name in _DROPOUTS and paths:
            self._outputs[id(result)] = (paths[0], result)
            return result
        for path in paths:
            self.uses.setdefault(path, []).append(name)
        self._outputs.pop(id(result), None)  # changed in place, and no norm's output any more
        if name in _NORMS and self._running and isinstance(result, Tensor):
            self._outputs[id(result)] = (self._running[-1], result)
        return result

    def pairs(self) -> Set[str]:
        """Return paths of the norms whose output an activation takes, and nothing else."""
        return {path for path, names in self.uses.items() if len(names) == 1 and names[0] in _ACTIVATIONS}

    def _entering(self, path: str) -> Callable[..., None]:
        return lambda module, inputs: self._running.append(path)

    def _leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
