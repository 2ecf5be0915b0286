"""What the choice of a norm costs a network: the same one with batch norm, GN+PN, and GN+PN that recomputes."""

from __future__ import annotations

import warnings
from typing import Any, Dict, Optional

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models import NETWORKS, build_model
from models.cost import Cost, measure_cost
from normact import NormActFactory
from normact.kernels.operators import why_not_loaded

# In the order of the columns; the last two are those of the fused kernels.
NORM_SETTINGS: Dict[str, Dict[str, Any]] = {
    "BN": {"norm": "batch", "proxy": False},
    "GN+PN": {"norm": "group", "proxy": True},
    "GN+PN, recompute": {"norm": "group", "proxy": True, "recompute": True},
}


def measure_norm_costs(
    name: str,
    *,
    image_size: Optional[int] = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: Optional[int] = None,
    activation: Optional[str] = None,
) -> Dict[str, Optional[Cost]]:
    """Return the cost of a network with each of NORM_SETTINGS; None where the fused kernels are not available here.

    Nothing is computed and no memory used: tensors are fake, and report the operators that a CPU would really run.

    Args:
        name: a key of models.NETWORKS.
        image_size: side of the square images; None for the network's native size.
        num_classes: size of the output.
        in_channels: channels of the image.
        width: channels of the stem of a small ResNet.
        activation: in the place of the network's own.
    """
    size = NETWORKS[name].image_size if image_size is None else image_size
    num_groups = 4 if name.startswith("efficientnet") else 8
    costs: Dict[str, Optional[Cost]] = {}
    for label, settings in NORM_SETTINGS.items():
        if settings["norm"] == "group" and why_not_loaded() is not None:
            costs[label] = None
            continue
        groups: Dict[str, Any] = {"num_groups": num_groups} if settings["norm"] == "group" else {}
        factory = NormActFactory(**settings, **groups)
        with torch.device("meta"):
            model = build_model(
                name,
                num_classes=num_classes,
                norm_act=factory,
                in_channels=in_channels,
                width=width,
                activation=activation,
            )
        with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # copying a fake parameter asks for its address
            costs[label] = measure_cost(model.to_empty(device="cpu"), size, in_channels=in_channels, images=2)
    return costs


def norm_costs_table(costs: Dict[str, Optional[Cost]]) -> str:
    """Parameters, multiply-adds and megabytes (1e6) saved for backward per image, a norm a line."""
    lines = [f"{'':18}{'parameters':>13}{'GMACs':>9}{'MB/image':>10}"]
    for label, cost in costs.items():
        numbers = (
            "   no fused kernels here"
            if cost is None
            else (f"{cost.parameters:>13,}{cost.multiply_adds / 1e9:>9.4f}{cost.saved_bytes_per_image / 1e6:>10.2f}")
        )
        lines.append(f"{label:18}{numbers}")
    return "\n".join(lines)
