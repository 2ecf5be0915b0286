"""The table of what converts, as a page of the documents."""

from __future__ import annotations

import re
from collections import Counter
from typing import Dict, Iterable, List, Sequence, Tuple

from analysis.conversion.survey import Surveyed

_INTRODUCTION = """# What converts

What `convert_norm` does to networks of other libraries, written by

    python analyze.py conversion --page docs/conversion.md

It takes one network of each family (each file that builds networks) of timm and torchvision, and the networks of
MONAI, segmentation-models-pytorch and nnU-Net with their defaults, as far as these libraries are installed; `--every`
takes all of timm and torchvision, and the column **networks** says how many of a family were taken: what several
commands find accumulates in the file `--rows`. Each is converted to group norm with Proxy Normalization and run.

* **norms**: all norms of the network. **with PN**: merged into one layer with the activation that follows. **alone**:
  replaced by a norm without Proxy Normalization, since no activation follows. **kept**: unchanged.
* **pairs**: norms whose output goes to an activation and nowhere else. They are counted while the network runs, by
  watching its operations, not by the tracing that the conversion uses; **missed** are those that got no PN.
* **run**: the converted network gives an output. **independent**: in training, the first image's output stays the same
  when the second image changes. This is tried with networks of up to 30 million parameters; the others are converted on
  the meta device, where nothing is computed.

Norms over the channels of each position (layer norm in transformers and ConvNeXts) are kept: a norm over positions
would be a different function. A network whose batch norm is kept still depends on the batch.
"""


def page(rows: Sequence[Surveyed], left: Sequence[str]) -> str:
    """Markdown: totals by library, families, what is kept and alone with reasons, what was missed or failed.

    Args:
        rows: what was found.
        left: names of the networks that were not surveyed.
    """
    parts = [_INTRODUCTION, _versions(rows), "## Totals\n", _table(_groups(rows, lambda row: row.library), "library")]
    for library, own in _groups(rows, lambda row: row.library):
        names = library in ("monai", "segmentation-models-pytorch", "nnU-Net")
        families = _groups(own, lambda row: row.name) if names else _families(own)
        with_norms = [(name, group) for name, group in families if any(row.norms or row.refused for row in group)]
        without = [name for name, group in families if not any(row.norms or row.refused for row in group)]
        convolutional = [(name, group) for name, group in with_norms if any(_is_converted(row) for row in group)]
        kept = [name for name, group in with_norms if not any(_is_converted(row) for row in group)]
        parts += [f"## {library}\n", _table(convolutional, "network" if names else "family")]
        if kept:
            parts.append(f"All norms kept, since none is a norm over positions: {', '.join(kept)}.\n")
        if without:
            parts.append(f"No norms: {', '.join(without)}.\n")
    parts += ["## Why norms are kept\n", _reasons(row.kept for row in rows)]
    parts += ["## Why norms are alone\n", _reasons(row.alone for row in rows)]
    missed = [f"* {row.library}: {row.name}, `{path}`: {_general(why)}" for row in rows for path, why in row.missed]
    failed = [f"* {row.library}: {row.name}: {row.refused or row.runs}" for row in rows if row.refused or row.runs]
    dependent = [f"* {row.library}: {row.name}" for row in rows if row.independent is False]
    for title, lines in (
        ("Pairs without Proxy Normalization", missed),
        ("Not converted, or not running afterwards", failed),
        ("Dependent on other images", dependent),
    ):
        parts += [f"## {title}\n", "\n".join(lines) + "\n" if lines else "None.\n"]
    if left:
        parts += ["## Not surveyed yet\n", f"{len(left)} networks: {', '.join(left)}.\n"]
    return "\n".join(parts)


def _families(rows: Sequence[Surveyed]) -> List[Tuple[str, List[Surveyed]]]:
    """Return the networks of each family, which one network alone gives its name too."""
    groups = _groups(rows, lambda row: row.family)
    return [(f"{family} ({group[0].name})" if len(group) == 1 else family, group) for family, group in groups]


def _versions(rows: Sequence[Surveyed]) -> str:
    versions = dict.fromkeys(f"{row.library} {row.version}" for row in rows if row.version)
    return f"Versions: {', '.join(versions)}.\n" if versions else ""


def _is_converted(row: Surveyed) -> bool:
    return bool(row.with_proxy or row.alone or row.refused)


def _groups(rows: Sequence[Surveyed], key: object) -> List[Tuple[str, List[Surveyed]]]:
    groups: Dict[str, List[Surveyed]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)  # type: ignore[operator]
    return list(groups.items())


def _table(groups: Iterable[Tuple[str, List[Surveyed]]], title: str) -> str:
    lines = [
        f"| {title} | networks | norms | with PN | alone | kept | pairs | missed | run | independent |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = list(groups)
    if len(groups) > 1:
        groups.append(("**all**", [row for _, rows in groups for row in rows]))
    for name, rows in groups:
        tried = [row for row in rows if row.independent is not None]
        cells: List[object] = [name, len(rows), sum(row.norms for row in rows), sum(row.with_proxy for row in rows)]
        cells += [sum(sum(row.alone.values()) for row in rows), sum(sum(row.kept.values()) for row in rows)]
        cells += [sum(row.pairs for row in rows), sum(len(row.missed) for row in rows)]
        cells += [sum(not row.runs and not row.refused for row in rows)]
        cells += [f"{sum(bool(row.independent) for row in tried)} of {len(tried)}"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _reasons(counts: Iterable[Dict[str, int]]) -> str:
    total: Counter[str] = Counter()
    for reasons in counts:
        for reason, count in reasons.items():
            total[_general(reason)] += count
    lines = ["| reason | norms |", "|---|---|", *(f"| {reason} | {count} |" for reason, count in total.most_common())]
    return "\n".join(lines) + "\n"


def _general(reason: str) -> str:
    """Return a reason without the places of one network in it."""
    reason = re.sub(r"its output leaves \S+", "its output leaves the part that could be traced", reason)
    return re.sub(r"\S+ cannot be rewritten", "its block cannot be rewritten", reason).replace("|", "\\|")
