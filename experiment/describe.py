"""What is about to run, in words."""

from __future__ import annotations

import torch

from configs import expected_of_run
from configs.counted import counted
from experiment.run import PlannedRun
from models.norm_costs import measure_norm_costs, norm_costs_table


def describe_norms(run: PlannedRun) -> str:
    """Return what this network and image size cost with batch norm, GN+PN, and GN+PN that recomputes."""
    model, data = run.config.model, run.data
    sizes = {"image_size": data.image_size, "num_classes": data.num_classes, "in_channels": data.channels}
    return norm_costs_table(measure_norm_costs(model.name, width=model.width, activation=model.activation, **sizes))


def describe(run: PlannedRun) -> str:
    """Return what is about to run, one aspect a line."""
    config, data, cost = run.config, run.data, run.cost
    expected = expected_of_run(run.name, config)
    held_out = "" if data.validation is None else f"{len(data.validation):,} held out to choose by, "
    saved = cost.saved_bytes(run.plan.micro_batch_size) / 2**20
    lines = {
        "device": f"{run.device.name} ({run.device.reason}), {run.device.precision}, "
        f"{counted(torch.get_num_threads(), 'thread')}",
        "data": f"{config.data.name}: {len(data.train):,} training images, {held_out}"
        f"{len(data.evaluation):,} to evaluate, {counted(data.num_classes, 'class', 'classes')}, "
        f"{data.channels}x{data.image_size}x{data.image_size}",
        "network": f"{config.model.name}, norm {config.norm.name}{' with proxy' if config.norm.proxy else ''}: "
        f"{cost.parameters:,} parameters, {cost.multiply_adds / 1e6:,.1f} M multiply-adds per image",
        "batch": str(run.plan),
        "memory": f"{saved:,.0f} MiB of activations saved for backward in a micro-batch",
        **({} if expected is None else {"expected": f"{expected}"}),
        "steps": f"{run.steps:,} = {counted(config.schedule.epochs, 'epoch')} x {run.steps_per_epoch:,}",
        **run.placement.details,
    }
    return "\n".join(f"{name:<8} {text}" for name, text in lines.items())
