"""Transfers that overlap with computation: for which tensors they are asked for, and whether they are possible."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Set, Tuple

import torch

from ..enums import OutputMode, OverlapMode
from ..errors import backend_error


class OverlappedTransfers:
    """Notes of one forward pass. Tensors are known by identity, so a mark gives a new object for the same values."""

    def __init__(self) -> None:
        self._marks: Dict[str, List[Tuple[torch.Tensor, torch.Tensor]]] = {"input": [], "output": []}
        self._operands: Set[int] = set()
        self.is_wanted = False

    def mark(self, direction: str, tensor: torch.Tensor, mode: OverlapMode) -> torch.Tensor:
        """Note set_overlap_for_input or _output; NoOverlap is a mark too, but asks for nothing."""
        with torch._C.DisableTorchFunction():
            marked = tensor.view_as(tensor)
        self._marks[direction].append((tensor, marked))
        self.is_wanted = self.is_wanted or mode != OverlapMode.NoOverlap
        return marked

    def note_operation(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        """Note that an operation uses these arguments."""
        for arg in (*args, *kwargs.values()):
            for element in arg if isinstance(arg, (tuple, list)) else (arg,):
                if isinstance(element, torch.Tensor):
                    self._operands.add(id(element))

    def check(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        """Check the marks of a whole forward pass.

        Raises:
            Error: a marked input has another use, a mark is not on an input or output, or a marked output is returned
                twice.
        """
        positions = {id(tensor): index for index, tensor in enumerate(inputs)}
        returned = [id(tensor) for tensor in outputs]
        sources = [id(source) for source, _ in self._marks["input"]]
        for identity in sources:
            is_shared = identity in self._operands or identity in returned or sources.count(identity) > 1
            if identity in positions and is_shared:
                raise backend_error(
                    "poptorch.set_overlap_for_input must be the only op applied to an input. This is not the case for "
                    f"input {positions[identity]} to the model."
                )
        for source, marked in self._marks["output"]:
            if returned.count(id(source)) + returned.count(id(marked)) > 1:
                raise backend_error(
                    "poptorch.set_overlap_for_output cannot be used with a tensor that is returned twice. Please check "
                    "all returned tensors including those nested in tuples/lists."
                )
        if any(identity not in positions for identity in sources):
            raise _misplaced("input")
        if any(id(marked) not in returned for _, marked in self._marks["output"]):
            raise _misplaced("output")


def _misplaced(direction: str) -> Exception:
    return backend_error(
        f"poptorch.set_overlap_for_{direction} applied on a node which is not a tensor {direction} to the model."
    )


def check_overlap_options(options: Any, is_pipelined: bool) -> None:
    """Check what overlapped transfers need of the options.

    Raises:
        Error: pipelined execution, no IO tiles, or outputs of another mode than All and Sum.
    """
    if is_pipelined:
        raise backend_error(
            "Overlapped IO is not supported with poptorch.PipelinedExecution. "
            "If you are using only one IPU, please switch to poptorch.ShardedExecution."
        )
    if not options.TensorLocations.exists("numIOTiles"):
        raise backend_error(
            "No IO tiles allocated. You must allocate at least 32 IO tiles "
            "using poptorch.Options().TensorLocations.numIOTiles."
        )
    if options.output_mode not in (OutputMode.All, OutputMode.Sum):
        raise backend_error(
            "Unsupported output mode for overlapped IO. "
            "Please switch output mode to poptorch.OutputMode.All or poptorch.OutputMode.Sum."
        )
