"""The forward pass that is running on the emulated device at this moment, if any, and what it notes down."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Set

import torch

from .._logging import logger
from .._options.strategies import Placement, StageManager
from ..errors import backend_error
from .loss_scaling import AutomaticLossScaling
from .memory_meter import MemoryMeter
from .operation_names import OperationNames
from .operator_watch import OperatorWatch
from .overlap import OverlappedTransfers


class DeviceRun:
    """Notes of one forward pass: its losses, where its operations were placed, which buffers ops update.

    Args:
        stages: gives blocks their places; None where placement is not followed (after compilation).
        strided_group_norm: group norm takes every num_groups-th channel, not neighbouring channels.
        is_folded: several micro steps run at once, under torch.func.vmap.
        names: names what is computed, where somebody wants to know.
        mode: the execution strategy's word for the log.
        is_training: of a training model, whatever the mode of its modules.
    """

    def __init__(
        self,
        stages: Optional[StageManager] = None,
        strided_group_norm: bool = False,
        is_folded: bool = False,
        names: Optional[OperationNames] = None,
        mode: str = "",
        is_training: bool = False,
    ) -> None:
        self.stages = stages
        self.strided_group_norm = strided_group_norm
        self.is_folded = is_folded
        self.names = names
        self.mode = mode
        self.is_training = is_training
        self.checks_finite = False  # stop at a result that is not a number or overflows
        self.memory: Optional[MemoryMeter] = None  # measures it
        self.made: Set[int] = set()  # addresses of the tensors that forward() made on the device
        self.operators: Optional[OperatorWatch] = None  # refuses what the device cannot compile
        self.auto_scaling: Optional[AutomaticLossScaling] = None  # watches the gradients
        self.losses: List[torch.Tensor] = []
        self.overlap = OverlappedTransfers()
        self.updates_by_norms: Dict[int, int] = {}  # id(buffer) -> version steps made by norm operations
        self.updates_statistics = False  # a norm does; batch norm's updates leave the version as it was
        self.open_multi_conv = False
        self.convolutions = 0  # of the open MultiConv
        self.variables: Sequence[torch.Tensor] = ()  # parameters and buffers, while compiling
        self.is_in_loop = False
        self.differentiates = False  # forward() asks for gradients itself
        self.calls_host = False  # prints or calls a function of the host
        self.placement: Optional[Placement] = Placement(stage=0, phase=-1, ipu=0)
        self.used_ipus: Set[int] = set()
        self.ipu_changes = 0
        self.last_phase = 0
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
        if self.memory is not None:
            self.memory.enter(self.ipu_changes, self.placement.ipu)

    def place_operation(self, names: List[str]) -> None:
        """Note that an operation with these results runs in the present block.

        Raises:
            Error: there is no block.
        """
        if self.placement is None:
            raise backend_error("No active Block, all the ops must belong to a Block")
        self.used_ipus.add(self.placement.ipu)
        self.last_phase = max(self.last_phase, self.placement.phase)
        for name in names:
            logger.debug("Operation %s mode(%s), %s", name, self.mode, self.placement.shown())

    def end_block(self) -> None:
        """Operations from here on belong to no block."""
        if self.is_tracing:
            self.placement = None


current: Optional[DeviceRun] = None


def as_one_operator(call: Callable[..., Any], *args: Any) -> Any:
    """Call a function that stands for an operator of the device which torch lacks."""
    if current is None or current.operators is None:
        return call(*args)
    return current.operators.called_whole(call, *args)


def isRunningOnIpu() -> bool:
    """Whether the calling code is part of a forward pass on the device."""
    return current is not None
