"""An optional limit of the memory of each emulated IPU: POPTORCH_EMULATOR_IPU=mk1, mk2, bow, c600 or c2.

What is counted, in bytes of the device's types, for each IPU of a replica:

    weights        parameters and buffers, on the IPU that uses them first
    accumulators   one more of each trained weight where gradients are accumulated (SGD with one combined tensor: none)
    state          of the optimizer; divided by the replicas where it is sharded over them
    activations    stash * depth + live
    temporaries    operands and results of the largest operation, weights aside; in training their gradients too

Of the F forward stages of a pipeline, stage s keeps its stash for depth = 2 (F - 1 - s) + 1 micro batches, the last one
for none. With recomputation (in pipelines unless the option autoRecomputation says otherwise) the stash holds what
enters the stage and its recomputation checkpoints, and what the backward pass needs is live from one checkpoint to the
next. Without, all that enters or that the backward pass needs is the stash. Phased execution is not limited: it keeps
its tensors off chip. Code and exchange buffers have no public formula and are left out: a model that fits here may not
fit on hardware.
"""

from __future__ import annotations

import os
from typing import Any, Dict, NamedTuple, Optional

import torch

from .._device.device_weights import DeviceTensor, DeviceWeights
from .._device.memory_meter import MemoryMeter, Stage, device_bytes
from .._logging import logger
from .._optimizer.device_optimizer import DeviceOptimizer
from .._options.strategies import _IPhasedExecution
from ..errors import popart_error

VARIABLE = "POPTORCH_EMULATOR_IPU"
_KIB = 1024
_MIB = 1024 * _KIB
_SHARDED_FROM = 8192  # elements
_PIPELINE_RECOMPUTATION = 3


class IpuKind(NamedTuple):
    """Tiles of an IPU and the bytes of each."""

    tiles: int
    tile_bytes: int


_GC2, _GC200 = IpuKind(1216, 256 * _KIB), IpuKind(1472, 624 * _KIB)
KINDS = {"mk1": _GC2, "mk2": _GC200, "bow": _GC200, "c600": _GC200, "c2": _GC2}  # the last two are cards


def limited_kind() -> Optional[IpuKind]:
    """Return the IPU that the environment asks for; None: memory has no limit.

    Raises:
        ValueError: no such IPU.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    if name not in KINDS:
        raise ValueError(f"{VARIABLE} is {name!r}; it must be one of {', '.join(KINDS)}, or not set")
    return KINDS[name]


class IpuMemory(NamedTuple):
    """The bytes of one IPU, by use."""

    weights: int = 0
    accumulators: int = 0
    state: int = 0
    activations: int = 0
    temporaries: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)

    def shown(self) -> str:
        """In MiB, for messages."""
        parts = ", ".join(f"{name} {value / _MIB:.1f}" for name, value in self._asdict().items())
        return f"{self.total / _MIB:.1f} MiB ({parts})"


def check_memory(
    meter: MemoryMeter, weights: DeviceWeights, optimizer: Optional[DeviceOptimizer], options: Any, is_pipeline: bool
) -> None:
    """Check that every IPU holds what the model needs.

    Raises:
        Error: one does not.
    """
    kind = limited_kind()
    if kind is None or isinstance(options._execution_strategy, _IPhasedExecution):
        return
    limit = (kind.tiles - options.TensorLocations._values.get("numIOTiles", 0)) * kind.tile_bytes
    needed = memory_of(meter, weights, optimizer, options, is_pipeline)
    for ipu, memory in sorted(needed.items()):
        logger.info("IPU %d needs %s", ipu, memory.shown())
    full = [f"IPU {ipu} needs {memory.shown()}" for ipu, memory in sorted(needed.items()) if memory.total > limit]
    if full:
        raise popart_error(
            f"Out of memory: Cannot fit all variable data onto one or more tiles: {'; '.join(full)}, and has "
            f"{limit / _MIB:.1f} MiB. Use smaller micro batches, more pipeline stages, recomputation checkpoints, or "
            "keep the optimizer's state in other replicas or off chip"
        )


def memory_of(
    meter: MemoryMeter, weights: DeviceWeights, optimizer: Optional[DeviceOptimizer], options: Any, is_pipeline: bool
) -> Dict[int, IpuMemory]:
    """Return what each IPU of a replica needs."""
    needed: Dict[int, IpuMemory] = {stage.ipu: IpuMemory() for stage in meter.stages}
    for tensor in weights.parameters + weights.buffers:
        ipu = meter.ipu_of_weight(id(tensor.values[0]))
        needed[ipu] = _sum(needed.get(ipu, IpuMemory()), _of_weight(tensor, optimizer, options))
    is_training = optimizer is not None
    for position, stage in enumerate(meter.stages):
        behind = len(meter.stages) - 1 - position
        depth = 0 if not behind else 2 * behind + 1
        activations = _activations(stage, depth if is_pipeline else 0, _recomputes(options, is_pipeline))
        temporaries = stage.backward_temporaries if is_training else stage.forward_temporaries
        before = needed[stage.ipu]
        needed[stage.ipu] = before._replace(
            activations=before.activations + (activations if is_training else stage.entering),
            temporaries=max(before.temporaries, temporaries),
        )
    return needed


def _activations(stage: Stage, depth: int, recomputes: bool) -> int:
    if not recomputes:
        return (stage.entering + sum(stage.saved)) * max(depth, 1)
    return (stage.entering + stage.checkpoints) * max(depth, 1) + max(stage.saved)


def _recomputes(options: Any, is_pipeline: bool) -> bool:
    chosen = options._Popart.options.get("autoRecomputation", _PIPELINE_RECOMPUTATION if is_pipeline else 0)
    return int(chosen) in (1, _PIPELINE_RECOMPUTATION, 4)  # 0: none; 2: norms alone, which saves little


def _of_weight(tensor: DeviceTensor, optimizer: Optional[DeviceOptimizer], options: Any) -> IpuMemory:
    value = tensor.values[0]
    elements, replicas = value.numel(), options.replication_factor
    weight = _kept(device_bytes(value), elements, "location_weight", options, replicas)
    if optimizer is None:
        return IpuMemory(weights=weight)
    position = next((at for at, target in enumerate(optimizer.trained) if target.weight is tensor), None)
    if position is None:
        return IpuMemory(weights=weight)
    accumulator = 0
    if options.Training.gradient_accumulation > 1 and not optimizer.has_combined_accumulator(position):
        accumulator = elements * torch.empty((), dtype=optimizer.settings.accum_type).element_size()
    state = sum(device_bytes(part) for part in optimizer.state[position][0].values())
    return IpuMemory(
        weights=weight,
        accumulators=_kept(accumulator, elements, "location_accumulator", options, replicas),
        state=_kept(state, elements, "location_optimizer", options, replicas),
    )


def _kept(size: int, elements: int, location: str, options: Any, replicas: int) -> int:
    """Return what stays on the chip of one replica."""
    chosen = options.TensorLocations._values.get(location, {})
    if not chosen.get("onChip", 1) and elements >= chosen.get("minElementsForOffChip", 2):
        return 0
    least = chosen.get("minElementsForReplicatedTensorSharding", _SHARDED_FROM)
    if chosen.get("useReplicatedTensorSharding", 0) and replicas > 1 and elements >= least:
        return -(-size // replicas)
    return size


def _sum(a: IpuMemory, b: IpuMemory) -> IpuMemory:
    return IpuMemory(*(first + second for first, second in zip(a, b)))
