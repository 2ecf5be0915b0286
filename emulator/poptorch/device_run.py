"""The forward pass that is running on the emulated device at this moment, if any, and what it notes down."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Set

import torch

from .strategies import Placement, StageManager

_ON_DEVICE = "_poptorch_on_device"


class DeviceRun:
    """Notes of one forward pass: its losses, where its operations were placed, which buffers ops update.

    Args:
        stages: gives blocks their places; None where placement is not followed (after compilation).
        strided_group_norm: group norm takes every num_groups-th channel, not neighbouring channels.
    """

    def __init__(self, stages: Optional[StageManager] = None, strided_group_norm: bool = False) -> None:
        self.stages = stages
        self.strided_group_norm = strided_group_norm
        self.losses: List[torch.Tensor] = []
        self.overlapped: Set[str] = set()  # "input", "output": overlapped transfers were asked for
        self.updates_by_norms: Dict[int, int] = {}  # id(buffer) -> version steps made by norm operations
        self.calls_host = False  # prints or calls a function of the host
        self.placement: Optional[Placement] = Placement(stage=0, phase=-1, ipu=0)
        self.used_ipus: Set[int] = set()
        self.ipu_changes = 0
        self._last_ipu = 0

    @property
    def is_tracing(self) -> bool:
        """Whether this is the pass that compiles the model."""
        return self.stages is not None

    def begin_block(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        """Place all following operations."""
        if self.stages is None:
            return
        self.placement = self.stages.place(user_id, ipu_id)
        self.ipu_changes += self.placement.ipu != self._last_ipu
        self._last_ipu = self.placement.ipu

    def end_block(self) -> None:
        """Operations from here on belong to no block."""
        if self.is_tracing:
            self.placement = None


current: Optional[DeviceRun] = None


def isRunningOnIpu() -> bool:
    """Whether the calling code is part of a forward pass on the device."""
    return current is not None


def mark_on_device(tensor: torch.Tensor) -> torch.Tensor:
    """Note that this tensor object lives on the device."""
    tensor.__dict__[_ON_DEVICE] = True
    return tensor


def is_on_device(value: Any) -> bool:
    """Whether the value is a tensor that was computed on, or sent to, the device."""
    return isinstance(value, torch.Tensor) and _ON_DEVICE in value.__dict__
