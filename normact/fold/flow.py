"""Where a layer's constants can go: what takes its output, and what gives it its input."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from normact.fold.layers import ChannelAffine, pads_with_zeros
from normact.weight_standardization import WeightStandardizedConv2d

# By their very type: a class that extends one of them may compute something else.
_CONV2D = (nn.Conv2d, WeightStandardizedConv2d)
_CONVS = (nn.Conv1d, nn.Conv3d, *_CONV2D)


class Takers(NamedTuple):
    """The convolutions and linear layers that take an output.

    Args:
        nodes: their calls.
        bordered: whether one of them pads with zeros.
        reason: why the output also goes elsewhere; then there are no nodes. Empty where it does not.
    """

    nodes: Tuple[Node, ...]
    bordered: bool
    reason: str = ""


def find_takers(node: Node, affine: ChannelAffine, modules: Dict[str, nn.Module]) -> Takers:
    """Follow an output to the layers that can take scale_c x + shift_c over, through calls that commute with it.

    Args:
        node: the call whose output it is, (N, C, H, W).
        affine: the scales and shifts.
        modules: of the network, by path.
    """
    channels, is_positive = affine.scale.shape[0], bool((affine.scale > 0).all())
    found: List[Node] = []
    bordered = False
    open_ends = [(node, False)]  # and whether the output is flattened to (N, features) there
    while open_ends:
        source, is_flat = open_ends.pop()
        for user in source.users:
            module = module_of(modules, user)
            passage = "" if is_flat else _passage(user, module)
            is_only_input = user.args[:1] == (source,) and user.all_input_nodes == [source]
            if is_only_input and _takes(module, channels, is_flat):
                found.append(user)
                bordered = bordered or (isinstance(module, nn.Conv2d) and pads_with_zeros(module))
            elif is_only_input and (passage in ("same", "flat") or (passage == "max" and is_positive)):
                open_ends.append((user, passage == "flat"))
            else:
                name = type(module).__name__ if module is not None else getattr(user.target, "__name__", user.target)
                return Takers((), False, f"used by {name}")
    return Takers(tuple(found), bordered)


def conv_in_front(node: Node, modules: Dict[str, nn.Module]) -> Optional[Node]:
    """Return the convolution whose output goes into this call and nowhere else."""
    conv = node.all_input_nodes[0]
    module = module_of(modules, conv)
    return conv if type(module) in _CONVS and len(conv.users) == 1 and not has_hooks(module) else None


def module_of(modules: Dict[str, nn.Module], node: Node) -> Optional[nn.Module]:
    """Return the module that a node calls; None where it calls none."""
    return modules[str(node.target)] if node.op == "call_module" else None


def has_hooks(module: Optional[nn.Module]) -> bool:
    """Whether more than its forward runs when the module, or one inside it, is called."""
    return module is not None and any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _takes(module: Optional[nn.Module], channels: int, is_flat: bool) -> bool:
    """Whether a layer's weights meet the channels one by one (or, flattened, position by position)."""
    if has_hooks(module):
        return False
    if isinstance(module, nn.Conv2d):
        return type(module) in _CONV2D and not is_flat and module.in_channels == channels
    # Elsewhere than on (N, features), a linear layer acts on another dim.
    return type(module) is nn.Linear and is_flat and module.in_features % channels == 0


def _passage(node: Node, module: Optional[nn.Module]) -> str:
    """Return how scale_c x + shift_c passes a call: "same", "max" (scales must be positive), "flat", or "" if not."""
    if type(module) is nn.MaxPool2d:  # pads with minus infinity
        return "" if module.return_indices else "max"
    if type(module) is nn.AvgPool2d:
        pads = module.count_include_pad and module.padding not in (0, (0, 0))
        return "" if pads or module.divisor_override is not None else "same"
    if type(module) is nn.AdaptiveAvgPool2d or node.target is F.adaptive_avg_pool2d:
        return "same"
    if type(module) is nn.Flatten:
        return "flat" if (module.start_dim, module.end_dim) == (1, -1) else ""
    function = {"flatten": torch.flatten, "mean": torch.mean}.get(str(node.target), node.target)
    if node.op == "call_module" or function not in (torch.flatten, torch.mean):
        return ""
    names = ("start_dim", "end_dim") if function is torch.flatten else ("dim", "keepdim")
    given: Dict[str, Any] = {**dict(zip(names, node.args[1:])), **node.kwargs}
    if function is torch.flatten:
        return "flat" if given in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1}) else ""
    if not set(given) <= {"dim", "keepdim"} or given.get("dim") not in ((2, 3), [2, 3]):
        return ""
    return "same" if given.get("keepdim", False) else "flat"
