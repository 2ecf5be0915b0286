"""Recomputing a layer's output in backward instead of keeping it.

A convolution keeps its input for backward. Where that input is the output of a norm+activation layer made with
recompute=True, it is a cheap function of the layer's own input, which backward keeps anyway:

    with recomputed_activations():
        loss = criterion(model(images), labels)
    loss.backward()

Inside the context every operation that would save such an output saves a recipe instead (the layer's input, its
statistics and its parameters, none of them a copy), and its backward runs the forward map again: the same bits,
half the memory. Networks need not know. Anything else is saved as always.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from normact.kernels.arguments import LayerArguments

logger = logging.getLogger(__name__)

_RECIPE = "_normact_recipe"
_state = threading.local()
_warned = False


class Recipe(NamedTuple):
    """How to compute an output again, and the versions of what it is computed from."""

    x: Tensor
    statistics: Tensor
    layer: LayerArguments
    versions: Tuple[int, ...]
    out_version: int

    def recompute(self) -> Tensor:
        """Return the output again, to the bit.

        Raises:
            RuntimeError: a tensor it is computed from was changed in place since forward.
        """
        if _versions(self.x, *self.layer.rows) != self.versions:
            raise RuntimeError(
                "the input or a parameter of a norm+activation layer was changed in place after forward, "
                "so that its output cannot be computed again; do not change it, or use recompute=False"
            )
        with torch.no_grad():
            return torch.ops.normact.norm_act_again(self.x, self.statistics, *self.layer)


@contextlib.contextmanager
def recomputed_activations() -> Iterator[None]:
    """Inside, outputs of layers with recompute=True are not saved for backward but computed again there.

    Only forward must run inside. Contexts may be nested; each thread has its own.
    """
    depth = getattr(_state, "depth", 0)
    _state.depth = depth + 1
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _state.depth = depth


def recompute_activations(model: nn.Module) -> None:
    """Run every forward pass of `model` inside `recomputed_activations()`.

    Args:
        model: the whole network; without layers made with recompute=True nothing changes.
    """
    contexts: List[Any] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        contexts.append(recomputed_activations())
        contexts[-1].__enter__()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        contexts.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)


def is_recomputed(out: Tensor) -> bool:
    """Whether the output of a layer with recompute=True is to be recomputed; says once why not."""
    global _warned  # noqa: PLW0603  once per process
    if not out.requires_grad:
        return False
    if torch.compiler.is_compiling():
        return False  # the compiler itself chooses what to keep and what to compute again
    if getattr(_state, "depth", 0) == 0:
        if not _warned:
            _warned = True
            logger.warning(
                "recompute=True saves no memory outside `with recomputed_activations():` around the forward pass"
            )
        return False
    return True


def attach_recipe(out: Tensor, x: Tensor, statistics: Tensor, layer: LayerArguments) -> None:
    """Make `out` recognizable to the operations that will want to save it."""
    # Detached tensors share memory and version counter, but hold no graph: a recipe must not keep one alive.
    rows: Dict[str, Any] = {name: row.detach() for name, row in zip(layer._fields, layer.rows) if row is not None}
    recipe = Recipe(x.detach(), statistics, layer._replace(**rows), _versions(x, *layer.rows), out._version)
    # The attribute lives and dies with the tensor, unlike a table of ids.
    setattr(out, _RECIPE, recipe)


def recipe_of(tensor: Tensor) -> Optional[Recipe]:
    """Return how backward would compute `tensor` again; None where the tensor itself is kept."""
    return getattr(tensor, _RECIPE, None)


def _versions(*tensors: Optional[Tensor]) -> Tuple[int, ...]:
    return tuple(-1 if t is None else t._version for t in tensors)


def pack(tensor: Tensor) -> Union[Tensor, Recipe]:
    """Return what is kept for backward in the place of a tensor: its recipe where it has one, else the tensor."""
    recipe = recipe_of(tensor)
    if recipe is None or tensor._version != recipe.out_version:
        return tensor
    return recipe


def unpack(saved: Union[Tensor, Recipe]) -> Tensor:
    """Return the tensor that `pack` was given."""
    return saved.recompute() if isinstance(saved, Recipe) else saved
