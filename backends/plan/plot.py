"""A picture of a plan: each stage's memory as a bar, beside what one IPU offers."""

from __future__ import annotations

from pathlib import Path
from typing import Union

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from backends.plan.hardware import MIB
from backends.plan.ipu_plan import IpuPlan
from backends.plan.report import PARTS
from configs.counted import counted
from configs.picture_file import plain_texts, save_picture

# Okabe-Ito: apart for colour-blind readers; hatches tell them apart in grey.
_STYLES = {
    "weights": ("#0072B2", ""),
    "optimizer_state": ("#56B4E9", "//"),
    "accumulators": ("#009E73", ""),
    "stash": ("#E69F00", ""),
    "activations": ("#D55E00", "\\\\"),
    "temporaries": ("#CC79A7", ""),
    "code": ("#999999", ".."),
}


@plain_texts()
def plot_plan(plan: IpuPlan, out_png: Union[str, Path], title: str = "") -> None:
    """Draw the stages of a plan as stacked bars of memory, with the IPU's memory as a line.

    Args:
        plan: as `plan_ipu` gives it.
        out_png: the picture's file; overwritten.
        title: above the picture, e.g. the network's name.
    """
    stages = plan.stages
    figure = Figure(figsize=(10, 2.2 + 0.45 * len(stages)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [
        f"{each.stage.index}: {'input' if each.stage.index == 0 else plan.execution.splits[each.stage.index - 1]}"
        for each in stages
    ]
    left = [0.0] * len(stages)
    for part in PARTS:
        color, hatch = _STYLES[part]
        widths = [getattr(each.memory, part) / MIB for each in stages]
        label = part.replace("_", " ")
        axes.barh(
            names,
            widths,
            left=left,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
            label=label,
            height=0.7,
        )
        left = [before + width for before, width in zip(left, widths)]
    offered = plan.memory_bytes / MIB
    axes.axvline(offered, color="black", linewidth=1.5, linestyle="--", label=f"one {plan.system.name}")
    furthest = max([offered, *left])
    axes.set_xlim(0, 1.15 * furthest)
    for row, each in enumerate(stages):
        text = f"{each.memory.total / plan.memory_bytes:.0%}, {1e3 * each.seconds.total:.1f} ms"
        axes.text(1.01 * furthest, row, text, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("MiB on one IPU")
    axes.set_ylabel("pipeline stage")
    execution = plan.execution
    axes.set_title(
        f"{title + ': ' if title else ''}micro-batch {execution.micro_batch_size}, "
        f"{counted(execution.replicas, 'replica')} x "
        f"{counted(len(stages), 'stage')}, {plan.images_per_second:,.0f} images/s expected",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=8, frameon=False, fontsize=8)
    save_picture(figure, out_png, dpi=150)
