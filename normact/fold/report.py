"""What fold_for_inference did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Tuple

from normact.counted import counted


@dataclass(frozen=True)
class FoldedLayer:
    """One NormAct or batch norm of the network.

    Args:
        path: its name.
        norm: class name of its norm.
        norm_into: path of the convolution in front that took norm and affine; empty where none did.
        output: where the constants after the activation went: "moved" into the layers that take the output,
            "bounds" of the ReLU, constants of the "fused" operator, "multiply-add"; empty where there are none.
        output_into: paths of the convolutions and linear layers that took them.
        note: why something stayed where it was; empty where nothing did.
    """

    path: str
    norm: str
    norm_into: str = ""
    output: str = ""
    output_into: Tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class FoldReport:
    """Every NormAct and batch norm in the order of the data flow; str() is a table.

    Args:
        layers: one row for each call.
        standardized: paths of the weight-standardized convolutions that are now plain ones.
    """

    layers: Tuple[FoldedLayer, ...]
    standardized: Tuple[str, ...] = ()

    def __str__(self) -> str:
        header = ("layer", "norm", "norm folded into", "output", "folded into", "note")
        rows: List[Tuple[str, ...]] = [header]
        for layer in self.layers:
            into = ", ".join(layer.output_into) or "-"
            rows.append((layer.path, layer.norm, layer.norm_into or "-", layer.output or "-", into, layer.note))
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        norms = sum(bool(layer.norm_into) for layer in self.layers)
        outputs = {kind: sum(layer.output == kind for layer in self.layers) for kind in _OUTPUTS}
        counts = ", ".join(f"{count} {kind}" for kind, count in outputs.items() if count)
        lines.append(
            f"{counted(len(self.layers), 'layer')}: {counted(norms, 'norm')} folded; outputs: {counts or 'none'}"
        )
        if self.standardized:
            lines.append(f"{len(self.standardized)} weight-standardized convolutions are now plain ones")
        return "\n".join(lines)


_OUTPUTS = ("moved", "bounds", "fused", "multiply-add")
