"""What convert_norm did, norm by norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

from normact.convert.calibrate import CalibratedLayer, outputs_of
from normact.counted import counted


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
        num_groups: of the norm that took its place; None where it has no groups.
    """

    path: str
    original: str
    replaced_by: Optional[str]
    activation: Optional[str]
    proxy: bool
    reason: str = ""
    num_groups: Optional[int] = None


@dataclass(frozen=True)
class ConversionReport:
    """Every norm of the original network in order; str() is a table.

    Args:
        norms: one row for each.
        rewritten: paths of the modules that have a new forward, a torch.fx graph; "" for the network itself.
        trace_failures: (path, error) of the modules whose data flow could not be traced.
        new_parameters: names of the parameters that the network did not have: an optimizer made before lacks them.
        in_place: with out_of_place, (path, why) of the modules whose in-place operations stay.
        calibrated: with calibrate, one row for each layer that took the place of a batch norm.
        uncalibrated: with calibrate, paths of the replaced norms that were no batch norms with running statistics.
    """

    norms: Tuple[ConvertedNorm, ...]
    rewritten: Tuple[str, ...] = ()
    trace_failures: Tuple[Tuple[str, str], ...] = ()
    new_parameters: Tuple[str, ...] = ()
    in_place: Tuple[Tuple[str, str], ...] = ()
    calibrated: Tuple[CalibratedLayer, ...] = ()
    uncalibrated: Tuple[str, ...] = ()

    def __str__(self) -> str:
        header = ("norm", "was", "is", "groups", "activation", "PN", "note")
        rows: List[Tuple[str, ...]] = [header]
        for norm in self.norms:
            proxy = "yes" if norm.proxy else "no"
            rows.append(
                (
                    _name(norm.path),
                    norm.original,
                    norm.replaced_by or "kept",
                    "-" if norm.num_groups is None else str(norm.num_groups),
                    norm.activation or "-",
                    proxy,
                    norm.reason,
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        replaced = sum(norm.replaced_by is not None for norm in self.norms)
        with_proxy = sum(norm.proxy for norm in self.norms)
        lines.append(f"{counted(len(self.norms), 'norm')}: {replaced} replaced, {with_proxy} of them with PN")
        if self.rewritten:
            lines.append("with a new forward, a torch.fx graph: " + ", ".join(_name(path) for path in self.rewritten))
        for path, error in self.trace_failures:
            lines.append(f"data flow of {_name(path)} could not be traced: {error}")
        for path, reason in self.in_place:
            lines.append(f"in-place operations of {_name(path)} stay: {reason}")
        if self.calibrated:
            lines.append(_calibration(self.calibrated))
        for layer in self.calibrated:
            if layer.note:
                lines.append(f"calibration of {_name(layer.path)}: {layer.output or 'moments'}; {layer.note}")
        if self.uncalibrated:
            lines.append(
                f"{len(self.uncalibrated)} layers not calibrated ({_name(self.uncalibrated[0])}, ...): what they "
                "replaced was no batch norm with running statistics"
            )
        if self.new_parameters:
            lines.append(
                f"{len(self.new_parameters)} new parameters ({self.new_parameters[0]}, ...): an optimizer made before "
                "the conversion does not have them; make it afterwards"
            )
        return "\n".join(lines)


def _calibration(layers: Tuple[CalibratedLayer, ...]) -> str:
    return f"{counted(len(layers), 'layer')} calibrated{outputs_of(layers)}"


def _name(path: str) -> str:
    return path or "(the network)"
