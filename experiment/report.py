"""What a finished run leaves and says: summary.json, status.json, and the result as a table."""

from __future__ import annotations

from typing import Any, Dict

from experiment.manifest import checkpoint_name
from experiment.progress import Progress
from experiment.run import Run
from experiment.run_output import RunOutput
from experiment.words import speed_text


def report(run: Run, output: RunOutput, progress: Progress, details: Dict[str, Any]) -> None:
    """summary.json, status.json, and the result as a table.

    Args:
        run: that is finished.
        output: of the run.
        progress: at its end.
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
        **best_by_validation(progress),
        "steps": progress.step,
        **({"extended": progress.extended} if progress.extended else {}),
        "seconds": progress.seconds,
        "images_per_second": progress.speed(run.plan.global_batch_size),
        "device": run.device.name,
        "parameters": run.cost.parameters,
        **details,
    }
    output.finish(summary)
    rows = {
        "test top-1": f"{means.top1:.4f}",
        "test top-5": f"{means.top5:.4f}",
        "test loss": f"{means.loss:.4f}",
    }
    if progress.best is not None:
        best = progress.best
        rows["best epoch"] = f"{best.epoch}, by validation top-1 {best.validation.top1:.4f}: step {best.step:,}"
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


def best_by_validation(progress: Progress) -> Dict[str, Any]:
    """Return the last epoch's figures of the validation split, and the best checkpoint by it; nothing without one."""
    if progress.validation is None or progress.best is None:
        return {}
    best = {"checkpoint": f"checkpoints/{checkpoint_name(progress.best.step)}", **progress.best.as_dict()}
    return {"validation": progress.validation._asdict(), "best": best}
