"""Steps on whole networks: weight updates beside the CPU's, and speed beside the plan."""

from __future__ import annotations

import copy
import time
from typing import Any, Dict, List, Sequence

import torch

from backends import choose_device
from backends.ipu.device import IpuPlacement
from backends.ipu_report.series import UnequalError
from configs import load_config
from experiment.prepare import prepare
from experiment.run import PlannedRun

_UPDATES = 4  # compared with the CPU's
# Of the change of each tensor by one update. SiLU has no kink, across which rounding could move a value.
_ALLOWED_CHANGE, _ALLOWED_LOSS = 2e-2, 1e-4
_TIMED_UPDATES = 8
_RESNET20 = ["model.name=resnet20", "model.width=null", "model.activation=silu"]
_RESNET20 += ["data.num_train_images=128", "batch.global_batch_size=32"]


def compare_updates(device: str, system: str) -> Dict[str, Any]:
    """Weight updates of ResNet-20 with GN + PN on one IPU in float32, each from the same weights as the CPU's.

    Raises:
        UnequalError: a loss or a weight differs by more than rounding explains.
    """
    one_ipu = [f"ipu.system={system}", "ipu.ipus=1", "ipu.splits=[]", "batch.micro_batch_size=8"]
    cpu = _prepared("generated_smoke", "cpu", _RESNET20).start()
    ipu = _prepared("generated_smoke", device, [*_RESNET20, *one_ipu]).start()
    rows: List[Dict[str, float]] = []
    batches = [run.session.training_batches(run.data.train, 0, 0, 0) for run in (cpu, ipu)]
    rate = cpu.config.optimizer.learning_rate
    for step, (on_cpu, on_ipu) in enumerate(zip(*batches)):
        if step == _UPDATES:
            break
        before = copy.deepcopy(ipu.session.state())
        cpu.session.load_state(copy.deepcopy(before), is_updated=step > 0)
        expected = float(cpu.session.train_step(on_cpu, step, rate).loss_sum)
        loss = float(ipu.session.train_step(on_ipu, step, rate).loss_sum)
        found = ipu.session.state()["model"]
        changes = {
            name: _relative(found[name] - weight, weight - before["model"][name])
            for name, weight in cpu.session.state()["model"].items()
        }
        worst = max(changes, key=lambda name: changes[name])
        rows.append({"loss": loss, "cpu_loss": expected, "largest_change_difference": changes[worst]})
        if abs(loss / expected - 1) > _ALLOWED_LOSS or changes[worst] > _ALLOWED_CHANGE:
            raise UnequalError(
                f"update {step}: loss {loss:.6g}, the CPU's {expected:.6g}; {worst} differs by {changes[worst]:.2g}"
            )
    for run in (cpu, ipu):
        run.session.close()
    return {"updates": rows}


def measure_speed(device: str, system: str, ipus: int, experiment: str, is_network: bool) -> Dict[str, Any]:
    """Images/s of weight updates on one batch of synthetic images, after the first, which compiles; and the plan's.

    Args:
        device: its name.
        system: the kind of IPUs.
        ipus: how many.
        experiment: of configs/.
        is_network: it is the name of a network instead, in place of generated_smoke's.
    """
    name = "generated_smoke" if is_network else experiment
    overrides = [f"ipu.system={system}", f"ipu.ipus={ipus}", "data.name=generated", "data.dir=null"]
    if is_network:
        overrides += [f"model.name={experiment}", "model.width=null"]
    images = load_config(name, overrides).batch.global_batch_size
    overrides += [f"data.num_train_images={images}", "data.num_eval_images=16", "run.power_every_epochs=null"]
    if not is_network and load_config(name).data.name not in ("fashion_mnist", "generated"):
        overrides.append("data.num_classes=1000")
    planned = _prepared(name, device, overrides)
    assert isinstance(planned.placement, IpuPlacement)
    plan = planned.placement.estimate
    low, high = plan.images_per_second_range
    found: Dict[str, Any] = {
        "replicas": plan.execution.replicas,
        "splits": list(plan.execution.splits),
        "checkpoints": list(plan.execution.checkpoints),
        "micro_batch_size": plan.execution.micro_batch_size,
        "planned_images_per_second": [low, plan.images_per_second, high],
        "planned_full": [plan.full_range[0], plan.full, plan.full_range[1]],
        "refused_by_the_plan": list(plan.refusals),
    }
    if plan.refusals:
        return found
    session = planned.start().session
    (batch,) = session.training_batches(planned.data.train, 0, 0, 0)
    start = time.perf_counter()
    session.train_step(batch, 0, 1e-3)
    found["first_update_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    for step in range(1, _TIMED_UPDATES + 1):
        session.train_step(batch, step, 1e-3)
    speed = _TIMED_UPDATES * planned.plan.global_batch_size / (time.perf_counter() - start)
    session.close()
    return {**found, "images_per_second": speed, "is_within_the_plan": low <= speed <= high}


def _prepared(name: str, device: str, overrides: Sequence[str]) -> PlannedRun:
    config = load_config(name, list(overrides), [("--device", "device.name", device)])
    return prepare(name, config, choose_device(config.device, config.ipu))


def _relative(difference: torch.Tensor, change: torch.Tensor) -> float:
    largest = float(change.abs().max())
    return float(difference.abs().max()) / largest if largest else float(difference.abs().max())
