"""What a forward pass computes and keeps, by pipeline stage: measured while a model is compiled."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch

_ON_DEVICE_BYTES = {torch.int64: 4, torch.float64: 4}


def device_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor in the device's types, which has no 64 bits."""
    return tensor.numel() * _ON_DEVICE_BYTES.get(tensor.dtype, tensor.element_size())


class Stage:
    """The bytes of one micro batch in one forward stage."""

    def __init__(self, ipu: int) -> None:
        self.ipu = ipu
        self.entering = 0  # inputs of the model and results of other stages that it uses
        self.checkpoints = 0
        self.saved = [0]  # what the backward pass needs, from one checkpoint to the next
        self.forward_temporaries = 0  # operands and results of the largest operation, weights aside
        self.backward_temporaries = 0  # the same twice, for their gradients, and the gradients of its weights


class MemoryMeter:
    """Follows the operations of one forward pass and what autograd keeps of them.

    Args:
        weights: the model's parameters and buffers, which are not activations.
        inputs: of the model.
    """

    def __init__(self, weights: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
        self.stages = [Stage(0)]
        self._weights = {id(tensor) for tensor in weights}
        self._weight_memory = {_memory(tensor) for tensor in weights}
        self._ipu_of_weight: Dict[int, int] = {}
        # By the memory of a tensor; None: it comes from the host.
        self._made_in: Dict[int, Optional[Stage]] = {_memory(tensor): None for tensor in inputs}
        self._seen: Set[Tuple[int, int]] = set()
        # Stage, part, tensor, and whether it came from another stage: what is a cast is known only later.
        self._saved: List[Tuple[Stage, int, torch.Tensor, bool]] = []
        self._is_cast_of: Dict[int, torch.Tensor] = {}
        self._alive: List[torch.Tensor] = []  # memory must not be used twice while it is measured

    def ipu_of_weight(self, identity: int) -> int:
        """Return the IPU that uses a parameter or buffer first; 0 if none does."""
        return self._ipu_of_weight.get(identity, 0)

    def enter(self, stage: int, ipu: int) -> None:
        """Count what follows for this forward stage."""
        while len(self.stages) <= stage:
            self.stages.append(Stage(ipu))
        self.stages[stage].ipu = ipu

    def note_operation(self, args: Tuple[Any, ...], kwargs: Dict[str, Any], results: Sequence[torch.Tensor]) -> None:
        """Count an operation of the present stage."""
        stage = self.stages[-1]
        operands = [tensor for arg in (*args, *kwargs.values()) for tensor in _tensors(arg)]
        for tensor in operands:
            if id(tensor) in self._weights:
                self._ipu_of_weight.setdefault(id(tensor), stage.ipu)
            elif self._is_from_elsewhere(stage, tensor) and self._is_new(stage, tensor):
                stage.entering += device_bytes(tensor)
        for tensor in results:
            self._made_in.setdefault(_memory(tensor), stage)
        self._alive += results
        weights = sum(device_bytes(tensor) for tensor in operands if id(tensor) in self._weights)
        size = sum(device_bytes(tensor) for tensor in (*operands, *results)) - weights
        stage.forward_temporaries = max(stage.forward_temporaries, size)
        stage.backward_temporaries = max(stage.backward_temporaries, 2 * size + weights)

    def note_checkpoint(self, tensors: Sequence[torch.Tensor]) -> None:
        """Keep these tensors; what comes after is recomputed from them."""
        self.stages[-1].checkpoints += sum(device_bytes(tensor) for tensor in tensors)
        self.stages[-1].saved.append(0)

    def note_cast(self, original: torch.Tensor, cast: torch.Tensor) -> None:
        """`cast` holds in float, for this machine, what the device has in `original`."""
        self._is_cast_of[_memory(cast)] = original
        self._alive += [original, cast]

    @contextlib.contextmanager
    def watching_autograd(self) -> Iterator[None]:
        """While entered, what autograd keeps is measured."""
        with torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor):
            yield

    def _save(self, tensor: torch.Tensor) -> torch.Tensor:
        stage = self.stages[-1]
        self._saved.append((stage, len(stage.saved) - 1, tensor, self._is_from_elsewhere(stage, tensor)))
        return tensor

    def finish(self) -> None:
        """Add up what autograd keeps after the forward pass, each storage once."""
        for stage, part, tensor, is_from_elsewhere in self._saved:
            kept = self._is_cast_of.get(_memory(tensor), tensor)
            is_outer = is_from_elsewhere or _memory(kept) in self._weight_memory
            if not is_outer and self._made_in.get(_memory(kept), stage) is stage and self._is_new(stage, kept):
                stage.saved[part] += device_bytes(kept)

    def _is_from_elsewhere(self, stage: Stage, tensor: torch.Tensor) -> bool:
        """Whether it was computed before this stage; what is not known yet is a result of the present operation."""
        return self._made_in.get(_memory(tensor), stage) is not stage

    def _is_new(self, stage: Stage, tensor: torch.Tensor) -> bool:
        """Whether this memory was not yet counted in the stage."""
        key = (id(stage), _memory(tensor))
        if key in self._seen:
            return False
        self._seen.add(key)
        self._alive.append(tensor)
        return True


def _tensors(arg: Any) -> List[torch.Tensor]:
    elements = arg if isinstance(arg, (tuple, list)) else (arg,)
    return [element for element in elements if isinstance(element, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage().data_ptr())
