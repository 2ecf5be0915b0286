"""How an executor's weights, state and device come and go."""

from __future__ import annotations

from typing import Any, Dict, List

import torch

from .._device import hardware
from .._logging import logger
from ..enums import ConnectionType
from ..errors import createPoptorchError
from . import wrapping
from .state import ExecutorState


class ExecutorDevice(ExecutorState):
    """Copies between host and device, attaching, detaching and destroying."""

    def load_state_dict(self, state_dict: Dict[str, torch.Tensor], strict: bool = True) -> Any:
        """Load weights into the model and, where it is attached, onto the device."""
        result = self._user_model.load_state_dict(state_dict, strict)
        if self.isAttachedToDevice():
            self.copyWeightsToDevice()
        return result

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Copy the weights to the host if the device has newer ones; True if it had."""
        if self._dirty_host_weights:
            logger.debug("Implicit copyWeightsToHost()")
            self.copyWeightsToHost()
            return True
        return False

    @torch.inference_mode(False)
    def copyWeightsToHost(self) -> None:
        """Copy parameters and buffers from the device to the model."""
        self._live()
        self._dirty_host_weights = False
        logger.debug("Writing weights from IPU to host")
        assert self._weights is not None
        self._weights.store()
        self._host_weights_version += 1

    @torch.inference_mode(False)
    def copyWeightsToDevice(self) -> None:
        """Copy parameters and buffers from the model to the device; an optimizer of torch.optim loses its state."""
        self._live()
        self._dirty_host_weights = False
        logger.debug("Writing weights from host to IPU memory")
        assert self._weights is not None
        self._weights.load()
        if self._optimizers is not None:
            self._optimizers.weights_were_sent()

    @torch.inference_mode(False)
    def copyNamedBuffersToDevice(self) -> None:
        """Copy the buffers that Options.updatableNamedBuffers() names from the model to the device."""
        self._live()
        names = self._options._Popart.options.get("updatableNamedBuffers")
        if names is None:
            raise createPoptorchError("No named buffers marked as updatable via updatableNamedBuffers option")
        assert self._weights is not None
        for buffer in self._weights.buffers:
            if any(slot.name in names for slot in buffer.slots):
                buffer.load()

    @torch.inference_mode(False)
    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell the device of a changed or another optimizer; needed after every change, a scheduler's too."""
        if self._optimizers is None:
            raise createPoptorchError("setOptimizer() is for training models: an inference model has no optimizer")
        self._optimizers.set(optimizer)

    @property
    def rng_state(self) -> List[int]:
        """The seed and state of the device's random generator."""
        self._live()
        return self._generator.read()

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        self._live()
        self._generator.write(state)

    def isAttachedToDevice(self) -> bool:
        """Whether the model is compiled and attached."""
        return self.isCompiled() and self._is_attached

    @torch.inference_mode(False)
    def attachToDevice(self) -> None:
        """Attach to the device again and send weights and state."""
        self._live()
        if self._options.connection_type == ConnectionType.Never:
            raise AssertionError("Trying to attach to an offline device (ConnectionType.Never)")
        if self._is_attached:
            raise createPoptorchError("Device is already attached")
        hardware.attach(self, self._options)
        self._is_attached = True
        self.copyWeightsToDevice()
        if self._optimizers is not None:
            self._optimizers.on_attach()
        self._generator.sent()

    @torch.inference_mode(False)
    def detachFromDevice(self) -> None:
        """Fetch weights and state and let go of the device."""
        self._live()
        if not self._is_attached:
            raise createPoptorchError("Device is not attached")
        if self._optimizers is not None:
            self.copyWeightsToHostIfNeeded()
            self._optimizers.read_state_if_needed()
        self._generator.read()
        hardware.release(self)
        self._is_attached = False

    @torch.inference_mode(False)
    def destroy(self) -> None:
        """Fetch weights and state, drop the executable and unwrap the model; it can then be wrapped again."""
        if not self.isCompiled():
            return
        if self._optimizers is not None:
            self.copyWeightsToHostIfNeeded()
            self._optimizers.read_state_if_needed()
        hardware.release(self)
        self._program = None
        self._weights = None
        self._is_attached = False
        if self._training:
            wrapping.unwrap_model(self._user_model)
