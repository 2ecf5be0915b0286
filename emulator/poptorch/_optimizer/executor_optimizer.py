"""A training executor's optimizer: the program's, the device's, and which of the two states is newer."""

from __future__ import annotations

import weakref
from types import MethodType
from typing import Any, Dict, List, Optional

import torch

from .. import optim
from .._device.device_weights import DeviceTensor, DeviceWeights
from .._device.loss_scaling import AutomaticLossScaling
from .._logging import logger
from ..enums import MeanReductionStrategy
from .device_optimizer import DeviceOptimizer, Trained
from .reduction import Reduction
from .settings import AttributeTracker, OptimizerSettings, settings_of
from .stochastic_rounding import StochasticRounding


class ExecutorOptimizer:
    """Keeps the device's optimizer in step with the program's.

    Args:
        executor: held by a weak reference.
        optimizer: the program's; None: SGD with lr 0.01.
    """

    def __init__(self, executor: Any, optimizer: Optional[torch.optim.Optimizer]) -> None:
        self._executor: Any = weakref.ref(executor)
        self._tracker = AttributeTracker(executor.options._relax_optimizer_checks)
        self._settings: Optional[OptimizerSettings] = None
        self._is_dirty = False
        self._has_warned_of_reset = False
        self._device: Optional[DeviceOptimizer] = None
        self.torch_optimizer: Any = None
        self.set(optim.SGD(executor._user_model.parameters(), lr=0.01) if optimizer is None else optimizer)

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_executor": None, "_device": None}

    @property
    def _own(self) -> Optional[optim.Optimizer]:
        """The program's optimizer if it is one of poptorch.optim, which knows of the device's state."""
        return self.torch_optimizer if isinstance(self.torch_optimizer, optim.Optimizer) else None

    def set(self, optimizer: Any) -> None:
        """Read the optimizer, and update the device if it is attached.

        Raises:
            ValueError: float16 accumulators after compilation without them.
            Error: a change of a constant.
        """
        executor = self._executor()
        if executor.isCompiled() and optimizer is not self.torch_optimizer:
            if self._own is not None:
                self.read_state_if_needed()
                self._own.state_dict = self._own.get_state_dict  # type: ignore[method-assign]
            if isinstance(optimizer, optim.Optimizer):
                optimizer.ipu_state_is_dirty = True
        if isinstance(optimizer, optim.Optimizer):
            optimizer.state_dict = MethodType(_state_dict_from_device, self)  # type: ignore[method-assign]
        self.torch_optimizer = optimizer
        auto_scaling = executor.options._Popart.options.get("automaticLossScalingSettings.enabled", False)
        self._require_running_mean(optimizer, executor)
        settings = settings_of(optimizer, self._tracker, auto_scaling)
        if settings != self._settings:
            self._settings = settings
            self._is_dirty = True
        if executor.isAttachedToDevice():
            self._update_device()
            self.write_state_if_needed()

    def _require_running_mean(self, optimizer: Any, executor: Any) -> None:
        """float16 accumulators need the running mean: a sum over many micro batches would overflow."""
        if getattr(optimizer, "accum_type", torch.float32) != torch.float16:
            return
        if getattr(optimizer, "use_combined_accum", False):
            return
        training = executor.options.Training
        if not executor.isCompiled():
            executor.options._unfreeze()
            training.setMeanAccumulationAndReplicationReductionStrategy(MeanReductionStrategy.Running)
            executor.options._freeze()
        elif training.meanAccumulationAndReplicationReductionStrategy != MeanReductionStrategy.Running:
            raise ValueError(
                "Invalid optimizer: float16 accumulators need poptorch.MeanReductionStrategy.Running, "
                "but the executable is already compiled."
            )

    def on_device(self, weights: DeviceWeights) -> DeviceOptimizer:
        """Make the device's optimizer for the model's trained parameters."""
        assert self._settings is not None
        trained = _trained(weights.parameters, self.torch_optimizer)
        options = self._executor().options
        divisor = Reduction.of(options).divisor_of_update
        scaling, rounding = AutomaticLossScaling.of(options), StochasticRounding.of(options)
        self._device = DeviceOptimizer(self._settings, trained, divisor, scaling, rounding)
        self._is_dirty = False
        return self._device

    def _update_device(self) -> None:
        if self._is_dirty and self._device is not None and self._settings is not None:
            self._device.update_settings(self._settings)
            self._is_dirty = False

    def on_attach(self) -> None:
        """Send numbers and state to the device."""
        self._update_device()
        if self._own is not None:
            if self._own.has_state():
                self._own.ipu_state_is_dirty = True
                self.write_state_if_needed()
            else:
                self._own.host_state_is_dirty = True
                self._own.ipu_state_is_dirty = False

    def weights_were_sent(self) -> None:
        """Weights go to the device together with all state as the host knows it.

        It knows the newest state of an optimizer of poptorch.optim, which is read back before; of one of torch.optim it
        knows the first values alone.
        """
        if self._own is not None or self._device is None:
            return
        if self._device.reset() and not self._has_warned_of_reset:
            self._has_warned_of_reset = True
            logger.warning(
                "Sending weights to the device (also by attaching to it, or by load_state_dict()) has set the state of "
                "%s, its momentum or moments, back to the first values: the state of torch.optim's optimizers is never "
                "read back from the device. Use the optimizer of the same name in poptorch.optim to keep it.",
                type(self.torch_optimizer).__name__,
            )

    def has_run(self) -> None:
        """Note that the device's state is newer now."""
        if self._own is not None:
            self._own.host_state_is_dirty = True

    def write_state_if_needed(self) -> None:
        """Send a state that the program loaded."""
        own, executor = self._own, self._executor()
        if own is not None and own.ipu_state_is_dirty and self._device is not None:
            if own.has_state():
                executor.copyWeightsToHostIfNeeded()
                self._device.write(own.get_state_dict())
            own.ipu_state_is_dirty = False

    def read_state_if_needed(self) -> None:
        """Fetch the device's state, if it is newer than the program's."""
        own = self._own
        if own is None:
            return
        if own.host_state_is_dirty and self._device is not None:
            own.set_state_dict({**self._device.read(), **torch.optim.Optimizer.state_dict(own)})  # type: ignore[arg-type]
            own.ipu_state_is_dirty = False
        else:
            logger.debug("Using cached optimiser state dict")


def _state_dict_from_device(keeper: ExecutorOptimizer) -> Dict[str, Any]:
    """state_dict() of an optimizer that an executor uses."""
    keeper.read_state_if_needed()
    return keeper.torch_optimizer.get_state_dict()


def _trained(parameters: List[DeviceTensor], optimizer: Any) -> List[Trained]:
    """Return every parameter that needs a gradient, with its group; those in no group take the optimizer's defaults."""
    group_of = {
        id(parameter): index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }
    with torch._C.DisableTorchFunctionSubclass():
        trained = [
            Trained(tensor, group_of.get(id(tensor.host))) for tensor in parameters if tensor.values[0].requires_grad
        ]
    rest = [target.weight.name for target in trained if target.group is None]
    if rest:
        logger.warning(
            "Parameters in no group of the optimizer are updated with its default values, as they are not frozen: %s "
            "(set requires_grad=False to keep them)",
            ", ".join(rest),
        )
    return trained
