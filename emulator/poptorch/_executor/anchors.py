"""Tensors of the device that a program asks for by name: anchorTensor(), getAnchoredTensor().

As on the device, they come back in the output mode of the model, whatever mode anchorTensor() was given.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Set

import torch

from .._device.device_weights import DeviceTensor, DeviceWeights
from .._device.operation_names import OperationNames
from .._logging import logger
from .._optimizer.device_optimizer import DeviceOptimizer, Gradients
from ..enums import OutputMode
from ..errors import backend_error
from .batching import BatchForm, OutputCollector, Step

Values = Dict[str, torch.Tensor]


class Anchors:
    """Reads anchored tensors, micro step after micro step.

    What forward() computes and the gradients (times the loss scale, before accumulation) are those of the micro step;
    weights, numbers of the optimizer and updated weights are those after the weight update that it belongs to.

    Args:
        options: of the executor.
        names: what forward() computes.
        weights: of the device.
        optimizer: in training.

    Raises:
        Error: no tensor of this name.
    """

    def __init__(
        self, options: Any, names: List[str], weights: DeviceWeights, optimizer: Optional[DeviceOptimizer]
    ) -> None:
        self._weights: Dict[str, DeviceTensor] = {}
        self._gradients: Dict[str, int] = {}
        self._numbers: List[str] = []
        self._optimizer = optimizer
        for tensor in weights.parameters + weights.buffers:
            self._weights[tensor.name] = tensor
        for position, target in enumerate(optimizer.trained if optimizer is not None else []):
            self._weights[f"UpdatedVar___{target.weight.name}"] = target.weight
            self._gradients[f"Gradient___{target.weight.name}"] = position
        if optimizer is not None:
            self._numbers = [*optimizer.numbers, "finalLossScale"]
        self.known = [*names, *self._weights, *self._gradients, *self._numbers]
        self._anchored = {short: anchor[0] for short, anchor in options.anchored_tensors.items()}
        for name, _, mode, period in options.anchored_tensors.values():
            if name not in self.known:
                raise backend_error(f"Anchored tensor {name} does not exist; there are {sorted(self.known)}")
            shown = "Sum" if mode == OutputMode.Sum else OutputMode(mode).name.upper()
            logger.debug("  anchor ( %s %s/%d )", name, shown, period)
        self._form = BatchForm.of(options)
        self._mode, self._period = options.output_mode, options.output_return_period
        self._computed: Set[str] = set(self._anchored.values()) & set(names)
        self._use_modules = options._module_namescope_enabled
        self._steps: List[Values] = []
        self._collectors: Dict[str, OutputCollector] = {}

    @property
    def need_single_steps(self) -> bool:
        """Whether micro steps must run one by one to be looked at."""
        return bool(self._computed) or any(name in self._gradients for name in self._anchored.values())

    def names_of_step(self) -> Optional[OperationNames]:
        """Return names for the forward pass of a micro step, where something that it computes is anchored."""
        return OperationNames(self._computed, self._use_modules) if self._computed else None

    def begin(self) -> None:
        """Begin a call."""
        self._collectors = {short: OutputCollector(self._form, self._mode, self._period) for short in self._anchored}

    def add_step(self, names: Optional[OperationNames], gradients: Gradients, shares: int) -> None:
        """Note one finished micro step of one replica; the loss gradient was to be divided by `shares`."""
        if self.need_single_steps:
            values = {} if names is None else dict(names.kept)
            name_of = {position: name for name, position in self._gradients.items()}
            for (position, _), gradient in gradients.items():
                values[name_of[position]] = gradient / shares
            self._steps.append(values)

    def end_iteration(self, steps: List[Step]) -> None:
        """Note that the micro steps of a weight update (in inference: of a call) are done."""
        if not self._anchored:
            return
        for first in range(0, len(steps), self._form.replicas):
            for short, name in self._anchored.items():
                replicas = range(self._form.replicas)
                self._collectors[short].add([self._value(name, first + replica, replica) for replica in replicas])
        self._steps = []

    def _value(self, name: str, step: int, replica: int) -> torch.Tensor:
        if name in self._weights:
            tensor = self._weights[name]
            return tensor.values[tensor.group_of[replica]].detach()
        if self._optimizer is not None and name in self._numbers:
            if name == "finalLossScale":
                return torch.tensor(self._optimizer.last_loss_scaling)
            return self._optimizer.numbers[name]
        if name not in self._steps[step]:
            raise backend_error(f"Anchored tensor {name} was not computed in this call")
        return self._steps[step][name]

    def results(self) -> Values:
        """Return what getAnchoredTensor() returns, by short names."""
        return {short: collector.result() for short, collector in self._collectors.items()}
