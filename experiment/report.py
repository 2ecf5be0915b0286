"""What a finished run leaves and says: summary.json, status.json, its pictures, and the result as a table."""

from __future__ import annotations

import logging
from typing import Any, Dict

from analysis.curves import plot_curves
from analysis.power_plot import plot_power_log
from analysis.settings import read_settings, run_title
from experiment.progress import Progress
from experiment.run import Run
from experiment.run_folder import RunFolder
from experiment.run_output import RunOutput
from experiment.words import speed_text

LOGGER = logging.getLogger(__name__)


def report(run: Run, output: RunOutput, progress: Progress, details: Dict[str, Any]) -> None:
    """summary.json, status.json, curves.png, and the result as a table.

    Args:
        details: more for the summary, what `measure_end` found among it.
    """
    means = progress.evaluation
    summary = {
        "experiment": run.name,
        **run.settings,
        "top1": means.top1,
        "top5": means.top5,
        "loss": means.loss,
        "best_top1": progress.best_top1,
        "steps": progress.step,
        **({"extended": progress.extended} if progress.extended else {}),
        "seconds": progress.seconds,
        "images_per_second": progress.speed(run.plan.global_batch_size),
        "device": run.device.name,
        "parameters": run.cost.parameters,
        **details,
    }
    output.finish(summary)
    if run.device.is_primary:
        draw(run.name, output.folder)
    rows = {
        "test top-1": f"{means.top1:.4f}",
        "test top-5": f"{means.top5:.4f}",
        "test loss": f"{means.loss:.4f}",
    }
    if "test_reestimated" in details:
        again = details["test_reestimated"]
        rows["re-estimated"] = f"test top-1 {again['top1']:.4f}, loss {again['loss']:.4f} with re-estimated statistics"
    if "train" in details:
        train = details["train"]
        rows["training"] = f"top-1 {train['top1']:.4f}, loss {train['loss']:.4f} of {train['images']:,} plain images"
    rows = {
        **rows,
        "time": f"{progress.seconds / 60:.1f} min",
        "training speed": speed_text(summary["images_per_second"]),
        "run folder": str(output.folder.path),
    }
    if run.data.train.corrupt:
        rows["replaced images"] = f"{run.data.train.corrupt} of this process could not be read"
    output.say(f"\n{run.name}, last epoch of {run.config.schedule.epochs}")
    for name, value in rows.items():
        output.say(f"  {name:<16}{value}")


def draw(name: str, folder: RunFolder) -> None:
    """curves.png and power.png. The run is done without them: where they cannot be written, a warning says so."""
    try:
        title = run_title(name, read_settings(folder.config))
        plot_curves(folder.metrics, folder.curves, title)
        if folder.power.exists():
            plot_power_log(folder.power, folder.power_plot, title)
    except OSError as error:
        LOGGER.warning(
            "the pictures cannot be written: %s; draw them with `python analyze.py curves %s`", error, folder.path
        )
