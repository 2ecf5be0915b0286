"""The power decomposition of a run while it trains."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

from torch.utils.data import Subset

from analysis.power import PowerMeter
from analysis.power_plot import plot_power_log
from configs import ConfigError
from experiment.guarded_loading import guarded
from experiment.metrics_log import MetricsLog
from experiment.run import PlannedRun, Run
from experiment.run_output import RunOutput


class PowerLog:
    """Measures the power decomposition after the epochs that run.power_every_epochs says. An `Observer`.

    It writes power.jsonl and power.png, and passes the numbers to the trackers.

    Args:
        run: what is measured.
        output: whose trackers are given P1 to P4 of each layer.
    """

    def __init__(self, run: Run, output: RunOutput) -> None:
        self._run, self._output = run, output
        self._log = MetricsLog(output.folder.power)

    def resume(self, step: int, evaluated_step: int) -> List[Mapping[str, Any]]:
        if not self._run.device.is_primary:
            return []
        # A run without a checkpoint starts again, with the record of its initial weights.
        self._log.truncate_after(step, evaluated_step if step else -1)
        return [power_numbers(record) for record in self._log.records()]

    def after_epoch(self, epoch: int) -> None:
        config = self._run.config
        every = config.run.power_every_epochs
        if every is None or (epoch % every and epoch != config.schedule.epochs):
            return
        layers = measure_power_of_run(self._run).records()
        if self._run.device.is_primary:
            record: Dict[str, Any] = {"split": "power", "step": epoch * self._run.steps_per_epoch, "epoch": epoch}
            record.update(images=self._run.power_images, layers=list(layers))
            self._log.append_record(record)
            self._output.track(power_numbers(record))

    def at_end(self, title: str) -> None:
        folder = self._output.folder
        if folder.power.exists():
            plot_power_log(folder.power, folder.power_plot, title)


def power_numbers(record: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a record of power.jsonl as trackers are given it: P1 to P4 of each layer by name."""
    powers = {
        f"{layer['name']}/P{number}": value
        for layer in record["layers"]
        for number, value in enumerate(layer["power"], start=1)
    }
    return {**{key: record[key] for key in ("split", "step", "epoch")}, **powers}


def measure_power_of_run(run: Run) -> PowerMeter:
    """Return the power decomposition in evaluation form over the first evaluation images, of all processes."""
    images: Subset = Subset(run.data.evaluation, range(run.power_images))  # type: ignore[arg-type]  # no Dataset by name
    with PowerMeter(run.network) as meter:
        for batch in guarded(run.session.evaluation_batches(images, run.config.data.workers)):
            run.session.eval_step(batch)
    meter.merge_states(run.session.gather(meter.state()))
    return meter


def check_power_is_measurable(run: PlannedRun) -> None:
    """Refuse a run that could not log its power decomposition.

    Raises:
        ConfigError: as said.
    """
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
