"""What each layer of a network gives, has, and keeps for the backward pass."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor, nn

from models.cost import SavedStorages
from normact import NormAct
from normact.kernels.recompute import recomputed_activations


@dataclass(frozen=True)
class LayerCost:
    """One layer, or what a module does itself beside its layers (a sum, a multiplication by gates).

    Attributes:
        name: of the module, as in named_modules().
        kind: its class; of what a module does itself in parentheses.
        norm: the norm of a NormAct, its groups and whether PN follows; "" for another layer.
        output: shape of what it gives for one image.
        parameters: trainable values.
        saved_bytes_per_image: kept for the backward pass. What several layers keep counts for the first of them.
    """

    name: str
    kind: str
    norm: str
    output: Tuple[int, ...]
    parameters: int
    saved_bytes_per_image: int


def measure_layers(model: nn.Module, image_size: int, *, in_channels: int = 3, images: int = 2) -> List[LayerCost]:
    """Return the layers of a network in the order of the forward pass of training; the sums are those of measure_cost.

    Args:
        model: on the device, and in the data type, to be measured; a copy of it is run.
        image_size: side of the square images.
        in_channels: channels of the image.
        images: size of the first of two batches, the second being twice it, as in measure_cost.
    """
    like = next(model.parameters())
    model = copy.deepcopy(model).train()
    shape = (in_channels, image_size, image_size)
    once, twice = (
        _run(model, torch.zeros((size, *shape), device=like.device, dtype=like.dtype)) for size in (images, 2 * images)
    )
    modules = dict(model.named_modules())
    rows = []
    for name, output in once.outputs.items():
        module, is_layer = modules[name], name in once.layers
        saved = -((once.saved.get(name, 0) - twice.saved.get(name, 0)) // images)  # rounded up
        if not is_layer and saved == 0:
            continue
        kind = type(module).__name__
        own = sum(parameter.numel() for parameter in module.parameters()) if is_layer else 0
        rows.append(
            LayerCost(name or "(whole)", kind if is_layer else f"({kind})", norm_text(module), output, own, saved)
        )
    return rows


def norm_text(module: nn.Module) -> str:
    """GroupNorm 8 + PN of a NormAct; "" of another module."""
    if not isinstance(module, NormAct):
        return ""
    groups = module.norm.groups()
    of = "" if groups is None or groups.num_groups == 1 else f" {groups.num_groups}"
    return f"{type(module.norm).__name__}{of}{'' if module.proxy is None else ' + PN'}"


def layers_table(rows: List[LayerCost]) -> str:
    """Return one layer a line, and the totals."""
    wide = max(len(row.name) for row in rows)
    norms = max(len(row.norm) for row in rows)
    kinds = max(len(row.kind) for row in rows)
    lines = [
        f"{'layer':{wide}}  {'kind':{kinds}}  {'norm':{norms}}  {'output':>14}  {'parameters':>11}  {'kB kept':>9}"
    ]
    for row in rows:
        output = "x".join(map(str, row.output))
        lines.append(
            f"{row.name:{wide}}  {row.kind:{kinds}}  {row.norm:{norms}}  {output:>14}  {row.parameters:>11,}  "
            f"{row.saved_bytes_per_image / 1e3:>9,.1f}"
        )
    parameters, saved = sum(row.parameters for row in rows), sum(row.saved_bytes_per_image for row in rows)
    empty = " " * (wide + kinds + norms + 4 + 2 + 14 - len("total"))
    return "\n".join([*lines, f"total{empty}  {parameters:>11,}  {saved / 1e3:>9,.1f}"])


class _Ran:
    """What one forward pass showed: by module, in the order in which they end."""

    def __init__(self) -> None:
        self.outputs: Dict[str, Tuple[int, ...]] = {}
        self.layers: List[str] = []
        self.saved: Dict[str, int] = {}


def _run(model: nn.Module, x: Tensor) -> _Ran:
    ran, running = _Ran(), [""]

    def keep(size: int) -> None:
        ran.saved[running[-1]] = ran.saved.get(running[-1], 0) + size

    hooks = []
    for name, module in _rows(model):
        hooks.append(module.register_forward_pre_hook(_entering(running, name)))
        hooks.append(module.register_forward_hook(_leaving(ran, running)))
        if _is_layer(module):
            ran.layers.append(name)
    saved = SavedStorages(model, keep)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), torch.enable_grad(), recomputed_activations():
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
            model(x)
    for hook in hooks:
        hook.remove()
    return ran


def _entering(running: List[str], name: str) -> Callable[[nn.Module, Any], None]:
    def note(module: nn.Module, inputs: Any) -> None:
        running.append(name)

    return note


def _leaving(ran: _Ran, running: List[str]) -> Callable[[nn.Module, Any, Tensor], None]:
    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        ran.outputs[running.pop()] = tuple(output.shape[1:])

    return note


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, NormAct) or not any(True for _ in module.children())


def _rows(model: nn.Module) -> List[Tuple[str, nn.Module]]:
    """Layers, and the modules that hold them; not what is inside a NormAct, which is one layer."""
    found: List[Tuple[str, nn.Module]] = []
    inside: List[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{layer}.") for layer in inside):
            continue
        if isinstance(module, NormAct):
            inside.append(name)
        found.append((name, module))
    return found
