"""Execution strategies: which block of the network runs in which stage, on which IPU."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from .._logging import logger
from ..enums import AutoStage, Liveness
from .sub_options import require_type

BlockId = str


class Placement(NamedTuple):
    """Where an operation runs."""

    stage: int
    phase: int
    ipu: int

    def shown(self) -> str:
        """For the log."""
        where = f"stage({self.stage})" if self.phase < 0 else f"phase({self.phase})"
        return f"ipu({self.ipu}), {where}"


class Stage:
    """Blocks that run together; `ipu()` overrides the blocks' own ipu_id."""

    def __init__(self, *block_ids: BlockId) -> None:
        if not all(isinstance(block, str) for block in block_ids):
            raise AssertionError(f"Block IDs are supposed to be strings but got {block_ids}")
        self._blocks = block_ids
        self._stage_id = -1
        self._phase_id = -1
        self._ipu: Optional[int] = None

    @property
    def blocks(self) -> Sequence[BlockId]:
        """The blocks of this stage."""
        return self._blocks

    def ipu(self, ipu: int) -> Stage:
        """Run the stage on this IPU."""
        require_type(ipu, int, "ipu")
        self._ipu = ipu
        return self


class StageManager:
    """Gives each block its stage, in the order in which the forward pass reaches the blocks."""

    def __init__(self, block_map: Dict[BlockId, Stage], auto_stage: Optional[AutoStage] = None) -> None:
        self._block_map = block_map
        self._auto_stage = auto_stage  # None: every block must be in block_map
        self._next_stage = 1  # code before the first block is stage 0
        self._next_auto_id = 0

    def resetAutoId(self) -> None:
        """Count unnamed blocks from 0 again."""
        self._next_auto_id = 0

    def nextAutoId(self) -> str:
        """Return the name of the next unnamed block."""
        self._next_auto_id += 1
        return str(self._next_auto_id - 1)

    def place(self, user_id: Optional[BlockId], ipu_id: Optional[int]) -> Placement:
        """Where the block runs: Stage.ipu() first, else the block's ipu_id, else the stage's number."""
        stage = self._stage(self.nextAutoId() if user_id is None else user_id, ipu_id)
        ipu = stage._ipu if stage._ipu is not None else ipu_id
        return Placement(stage._stage_id, stage._phase_id, stage._stage_id if ipu is None else ipu)

    def _stage(self, block_id: BlockId, ipu_id: Optional[int]) -> Stage:
        if block_id in self._block_map:
            return self._block_map[block_id]
        if self._auto_stage is None:
            raise AssertionError(f"Unknown Block '{block_id}' list of expected Blocks: {list(self._block_map)}")
        if self._auto_stage == AutoStage.SameAsIpu and ipu_id is None:
            raise AssertionError(
                f"poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block {block_id}"
            )
        stage = self._block_map[block_id] = Stage(str(block_id))
        if self._auto_stage == AutoStage.SameAsIpu:
            stage._stage_id = int(ipu_id)  # type: ignore[arg-type]
        else:
            stage._stage_id = self._next_stage
            self._next_stage += 1
        return stage


class _IExecutionStrategy:
    """Base of all strategies."""

    execution_mode = 0
    shown_mode = "Pipelined"

    def __init__(self, stages_manager: StageManager, block_map: Dict[BlockId, Stage]) -> None:
        self._stages_manager = stages_manager
        self._block_map = block_map

    def stage(self, block_id: BlockId) -> Stage:
        """Return the stage of a block; an unknown one is an AssertionError."""
        if block_id not in self._block_map:
            raise AssertionError(f"Unknown block {block_id}; known are {list(self._block_map)}")
        return self._block_map[block_id]

    def backendOptions(self) -> Dict[str, Any]:
        """Return the strategy in the back end's words."""
        return {"execution_mode": self.execution_mode}


def _add_blocks(stage: Stage, block_map: Dict[BlockId, Stage]) -> None:
    for block in stage.blocks:
        if block in block_map:
            raise AssertionError(f"{block} associated with more than one stage")
        block_map[block] = stage


class PipelinedExecution(_IExecutionStrategy):
    """Stages work on different micro batches at the same time.

    Args:
        args: one AutoStage, or the stages in order: a block, a list of blocks, or a Stage.
    """

    def __init__(self, *args: Union[AutoStage, Stage, BlockId, Sequence[BlockId]]) -> None:
        block_map: Dict[BlockId, Stage] = {}
        auto_stage: Optional[AutoStage] = AutoStage.SameAsIpu
        if len(args) == 1 and isinstance(args[0], AutoStage):
            auto_stage = args[0]
        else:
            for index, arg in enumerate(args):
                stage = _as_stage(arg)
                stage._stage_id = index
                _add_blocks(stage, block_map)
        super().__init__(StageManager(block_map, None if block_map else auto_stage), block_map)


def _as_stage(arg: Any) -> Stage:
    if isinstance(arg, Stage):
        return arg
    return Stage(arg) if isinstance(arg, str) else Stage(*arg)


class ShardedExecution(PipelinedExecution):
    """Stages follow each other for one micro batch at a time."""

    execution_mode = 1
    shown_mode = "Sharded"


class Phase:
    """Stages that run at the same time in phased execution.

    Args:
        arg: blocks (one stage), or stages.
    """

    def __init__(self, *arg: Union[BlockId, Stage]) -> None:
        self.stages: Tuple[Stage, ...]
        if all(isinstance(element, Stage) for element in arg):
            self.stages = arg  # type: ignore[assignment]
        elif all(isinstance(element, str) for element in arg):
            self.stages = (Stage(*arg),)  # type: ignore[arg-type]
        else:
            kinds = [type(element) for element in arg]
            raise AssertionError(f"All arguments must either be block IDs (strings) or Stages: {kinds}")

    def stage(self, idx: int) -> Stage:
        """Return the stage of this index."""
        return self.stages[idx]

    def ipus(self, *ipus: int) -> None:
        """Place the stages, one IPU each."""
        if len(ipus) != len(self.stages):
            raise AssertionError(f"Phase contains {len(self.stages)} stages but you provided {len(ipus)} ipus")
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)


class _IPhasedExecution(_IExecutionStrategy):
    """Phases follow each other, with weights fetched from off-chip memory."""

    execution_mode = 2
    shown_mode = "Phased"

    def __init__(self, *phases: Union[Phase, List[Stage], List[BlockId]]) -> None:
        if not phases:
            raise AssertionError("There is no AutoStage for phased execution: specify the phases")
        self._tensors_liveness = Liveness.AlwaysLive
        self._separate_backward_phase = False
        self._phases = [_as_phase(phase) for phase in phases]
        block_map: Dict[BlockId, Stage] = {}
        for index, phase in enumerate(self._phases):
            for stage in phase.stages:
                stage._phase_id = index
                _add_blocks(stage, block_map)
        super().__init__(StageManager(block_map), block_map)

    def phase(self, phase: int) -> Phase:
        """Return the phase of this index."""
        if not isinstance(phase, int) or phase < 0:
            raise AssertionError(f"Phases are identified by positive integers, got {phase!r}")
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> _IPhasedExecution:
        """Give the backward pass phases of its own."""
        require_type(use, bool, "use")
        self._separate_backward_phase = use
        return self

    def log_phases(self, last_phase: int) -> None:
        """Log what phased execution sets: its phases and stages, and that tensors are kept off chip."""
        # Three more phases let the last tensors leave the chip before the backward pass begins.
        gap = 3 if self._tensors_liveness != Liveness.AlwaysLive else int(self._separate_backward_phase)
        logger.debug("executionPhaseSettings.phases set to value %d", last_phase + 1 + gap)
        stages = 1 if self.backendOptions().get("serial_phases_execution", True) else 2
        logger.debug("executionPhaseSettings.stages set to value %d", stages)
        for kind in ("activation", "weight", "optimizer", "accumulator"):
            logger.debug("location_%s set to value useOnChipStorage(False)", kind)

    def backendOptions(self) -> Dict[str, Any]:
        return {
            "execution_mode": self.execution_mode,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": self._tensors_liveness.value,
        }


def _as_phase(phase: Any) -> Phase:
    if isinstance(phase, Phase):
        return phase
    return Phase(*phase) if isinstance(phase, list) else Phase(phase)


class ParallelPhasedExecution(_IPhasedExecution):
    """Phases alternate between two groups of IPUs."""

    def backendOptions(self) -> Dict[str, Any]:
        return {**super().backendOptions(), "serial_phases_execution": False}

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> ParallelPhasedExecution:
        """Whether tensors leave the chip after the forward pass."""
        require_type(off_chip, bool, "off_chip")
        self._tensors_liveness = Liveness.OffChipAfterFwd if off_chip else Liveness.AlwaysLive
        return self


class SerialPhasedExecution(_IPhasedExecution):
    """All phases run on the same IPUs."""

    def setTensorsLiveness(self, liveness: Liveness) -> SerialPhasedExecution:
        """Set how long the tensors of a phase stay on chip."""
        require_type(liveness, Liveness, "liveness")
        self._tensors_liveness = liveness
        return self

    def backendOptions(self) -> Dict[str, Any]:
        return {**super().backendOptions(), "serial_phases_execution": True}
