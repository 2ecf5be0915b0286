"""The power decomposition of a run while it trains."""

from __future__ import annotations

from torch.utils.data import Subset

from analysis.power import PowerMeter
from configs import ConfigError
from experiment.guarded_loading import guarded
from experiment.run import PlannedRun, Run


def measure_power_of_run(run: Run) -> PowerMeter:
    """The power decomposition, in evaluation form, over the first evaluation images, of all processes together."""
    images: Subset = Subset(run.data.evaluation, range(run.power_images))  # type: ignore[arg-type]  # no Dataset by name
    with PowerMeter(run.network) as meter:
        for batch in guarded(run.session.evaluation_batches(images, run.config.data.workers)):
            run.session.eval_step(batch)
    meter.merge_states(run.session.gather(meter.state()))
    return meter


def check_power_is_measurable(run: PlannedRun) -> None:
    """Raises ConfigError where a run could not log its power decomposition."""
    if not run.device.runs_hooks:
        raise ConfigError(
            f"run.power_every_epochs {run.config.run.power_every_epochs} needs a network that runs as Python code, and "
            f"on {run.device.name} it is compiled; remove it, and use `python analyze.py power --run` afterwards"
        )
    if run.power_images < run.plan.replicas:
        raise ConfigError(
            f"run.power_images {run.power_images} leaves some of {run.plan.replicas} processes without an image; "
            f"use {run.plan.replicas} or more"
        )
