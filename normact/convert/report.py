"""What convert_norm did, norm by norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple


@dataclass(frozen=True)
class ConvertedNorm:
    """One norm of the original network.

    Args:
        path: its name in the network.
        original: its class name.
        replaced_by: the norm that took its place; None where it was kept.
        activation: the activation that is now part of the layer; None where there is none.
        proxy: whether Proxy Normalization is there.
        reason: why it was kept, or replaced without its activation; empty where nothing is left to say.
    """

    path: str
    original: str
    replaced_by: Optional[str]
    activation: Optional[str]
    proxy: bool
    reason: str = ""


@dataclass(frozen=True)
class ConversionReport:
    """Every norm of the original network in order; str() is a table.

    Args:
        norms: one row for each.
        rewritten: paths of the modules that are now torch.fx graphs, "" for the network itself.
        trace_failures: (path, error) of the modules whose data flow could not be traced.
    """

    norms: Tuple[ConvertedNorm, ...]
    rewritten: Tuple[str, ...] = ()
    trace_failures: Tuple[Tuple[str, str], ...] = ()

    def __str__(self) -> str:
        header = ("norm", "was", "is", "activation", "PN", "note")
        rows: List[Tuple[str, ...]] = [header]
        for norm in self.norms:
            proxy = "yes" if norm.proxy else "no"
            rows.append(
                (
                    _name(norm.path),
                    norm.original,
                    norm.replaced_by or "kept",
                    norm.activation or "-",
                    proxy,
                    norm.reason,
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        replaced = sum(norm.replaced_by is not None for norm in self.norms)
        with_proxy = sum(norm.proxy for norm in self.norms)
        lines.append(f"{len(self.norms)} norms: {replaced} replaced, {with_proxy} of them with PN")
        if self.rewritten:
            lines.append("rewritten as torch.fx graphs: " + ", ".join(_name(path) for path in self.rewritten))
        for path, error in self.trace_failures:
            lines.append(f"data flow of {_name(path)} could not be traced: {error}")
        return "\n".join(lines)


def _name(path: str) -> str:
    return path or "(the network)"
