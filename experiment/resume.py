"""Everything that an exact continuation needs, as one dictionary of tensors and builtins; and what makes it inexact."""

from __future__ import annotations

import platform
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import torch

from configs import BatchPlan, Config
from configs.counted import counted
from configs.meaning import differences
from configs.schema.learning import ScheduleConfig
from training.schedule import build_schedule
from training.weights import CheckpointError

# Informative only; the other facts decide the result to the last bit.
_HARMLESS = ("python",)  # numpy draws what is mixed and dropped
_NOT_RECORDED = "not recorded"


def execution_facts(
    plan: BatchPlan, device_name: str, precision: str, config: Config, has_fused_kernels: bool
) -> Dict[str, Any]:
    """Return how this process computes: with equal facts the same configuration gives bit-identical results.

    Args:
        plan: the batch arithmetic.
        device_name: as the device calls itself.
        precision: what the device makes of device.precision auto.
        config: of the run.
        has_fused_kernels: whether the layers run them.
    """
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device_name.split(":")[0],
        "replicas": plan.replicas,
        "micro_batch_size": plan.micro_batch_size,
        "precision": precision if config.device.precision == "auto" else config.device.precision,
        "channels_last": config.device.channels_last,
        "compile": config.device.compile,
        "ipu": str(config.ipu) if device_name.startswith("ipu") else "",
        "kernel": config.norm.kernel,
        "has_fused_kernels": has_fused_kernels,
    }


def why_inexact(saved: Mapping[str, Any], current: Mapping[str, Any]) -> List[str]:
    """Reasons why continuing is not bit-identical to an uninterrupted run; empty where it is."""
    # earlier checkpoints hold fewer facts; one that is empty now decides nothing
    recorded = {fact: saved.get(fact, _NOT_RECORDED if value != "" else "") for fact, value in current.items()}
    facts = [fact for fact in current if fact not in _HARMLESS]
    return [f"{fact} was {recorded[fact]}, is now {current[fact]}" for fact in facts if recorded[fact] != current[fact]]


def check_same_run(
    saved: Mapping[str, Any], current: Mapping[str, Any], path: str, may_extend: bool = False
) -> Optional[int]:
    """Refuse a configuration that differs in what the experiment means.

    What says only how it is executed may differ: see configs.meaning.

    Args:
        saved: the configuration in the checkpoint.
        current: the configuration of this run, as a dictionary.
        path: of the checkpoint, for messages.
        may_extend: whether schedule.epochs may be more than it was.

    Returns:
        what schedule.epochs was, where it is more now; else None.

    Raises:
        CheckpointError: as said.
    """
    was, epochs = saved.get("schedule", {}).get("epochs"), current["schedule"]["epochs"]
    is_longer = type(was) is int and 0 < was < epochs
    compared = {**saved, "schedule": {**saved["schedule"], "epochs": epochs}} if is_longer else saved
    different = differences(compared, current)
    if is_longer and not may_extend and not different:
        raise CheckpointError(
            f"{path} was written by another experiment: schedule.epochs was {was}, is now {epochs}. To train longer "
            "add --extend-epochs, which says how the learning rate continues; else resume with the same value"
        )
    if may_extend and type(was) is int and epochs < was:
        raise CheckpointError(
            f"{path}: schedule.epochs was {was}, is now {epochs}. --extend-epochs makes a run longer, never shorter: "
            f"give {was} or more"
        )
    if different:
        raise CheckpointError(
            f"{path} was written by another experiment: {'; '.join(different[:5])}. Resume with the same values, "
            "or start a new run in another --output-dir"
        )
    return was if is_longer else None


def extension_text(schedule: ScheduleConfig, was: int, peak: float, step: int, steps_per_epoch: int) -> str:
    """Return what a run that goes on for more epochs says: whether it is the longer run from its beginning.

    Args:
        schedule: of now.
        was: schedule.epochs before.
        peak: learning rate.
        step: weight updates done.
        steps_per_epoch: weight updates.
    """
    before = build_schedule(schedule.model_copy(update={"epochs": was}), peak, steps_per_epoch)
    now = build_schedule(schedule, peak, steps_per_epoch)
    text = f"schedule.epochs was {was}, is now {schedule.epochs}"
    if all(before(done) == now(done) for done in range(step)):
        return (
            f"{text}: the learning rates so far are those of {counted(schedule.epochs, 'epoch')}, and so is the result"
        )
    return (
        f"{text}: from step {step:,} on learning rates are those of {counted(schedule.epochs, 'epoch')}, "
        f"{now(step):.3g} after "
        f"{before(step - 1):.3g}. The result is not that of {counted(schedule.epochs, 'epoch')} from the beginning"
    )
