"""The optimizer on the device: its numbers and state as named tensors, and one update of all weights."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch

from . import optimizer_update as formulas
from ._logging import logger
from .device_numbers import check_constants, device_settings
from .device_weights import DeviceTensor
from .errors import backend_error
from .loss_scaling import FACTOR_NAME, AutomaticLossScaling
from .optimizer_log import log_settings
from .optimizer_settings import OptimizerKind, OptimizerSettings, Setting

Gradients = Dict[Tuple[int, int], torch.Tensor]  # (position of the weight, replica group) -> gradient
_ADAMS = {
    OptimizerKind.ADAM: formulas.adam,
    OptimizerKind.ADAMW: formulas.adamw,
    OptimizerKind.ADAMW_NO_BIAS: formulas.adamw,  # as PopTorch 3.4: bias is corrected all the same
    OptimizerKind.LAMB: formulas.lamb,
    OptimizerKind.LAMB_NO_BIAS: formulas.lamb,
}


class Trained(NamedTuple):
    """A weight that the optimizer updates."""

    weight: DeviceTensor
    group: Optional[int]  # None: in no group of the optimizer, which updates it with its defaults


class StateTensor(NamedTuple):
    """One part of a weight's state: its name on the device, its type, its first value."""

    name: str
    dtype: torch.dtype
    initial: float
    is_scalar: bool


class DeviceOptimizer:
    """Optimizer of a compiled training model.

    Args:
        settings: as of the compilation.
        trained: the weights it updates.
        auto_scaling: changes the loss scale; None: it stays.
    """

    def __init__(
        self, settings: OptimizerSettings, trained: List[Trained], auto_scaling: Optional[AutomaticLossScaling] = None
    ) -> None:
        self.settings = settings
        self.trained = trained
        self.auto_scaling = auto_scaling
        self.has_momentum = [self._momentum_of(position) for position in range(len(trained))]
        self.parts = [self._state_parts(position) for position in range(len(trained))]
        self.state = [
            [
                {
                    part: torch.full([] if form.is_scalar else list(value.shape), form.initial, dtype=form.dtype)
                    for part, form in self.parts[position].items()
                }
                for value in target.weight.values
            ]
            for position, target in enumerate(trained)
        ]
        self.numbers: Dict[str, torch.Tensor] = {}
        self._write_numbers()
        self.last_loss_scaling = self.loss_scaling  # of the last update

    @property
    def loss_scaling(self) -> float:
        """What the loss's gradient is multiplied by."""
        factor = 1.0 if self.auto_scaling is None else float(self.auto_scaling.factor)
        return self._chosen_scaling * factor

    @property
    def _chosen_scaling(self) -> float:
        number = self.numbers.get("lossScaling_FLOAT")
        return float(self.settings.loss_scaling.value if number is None else number)

    def update_settings(self, settings: OptimizerSettings) -> None:
        """Take new values of variable numbers.

        Raises:
            Error: another kind of optimizer, other groups, or a change of a constant.
        """
        if settings.kind != self.settings.kind or len(settings.groups) != len(self.settings.groups):
            raise backend_error(
                f"The model was compiled for {self.settings.kind.name} with {len(self.settings.groups)} groups: "
                f"it cannot be updated to {settings.kind.name} with {len(settings.groups)}; call destroy() first"
            )
        check_constants(self.settings, settings)
        self.settings = settings
        self._write_numbers()

    def step(self, gradients: Gradients) -> None:
        """Update every weight that has a gradient."""
        scaling = self._chosen_scaling
        self.last_loss_scaling = self.loss_scaling
        # The numbers of the formulas hold the program's scale: the device's own factor is taken out before.
        share = self._clip_factor(gradients, self.loss_scaling) * scaling / self.loss_scaling
        with torch.no_grad():
            for (position, copy), gradient in gradients.items():
                weight = self.trained[position].weight.values[copy]
                state = self.state[position][copy]
                working = {part: tensor.float() for part, tensor in state.items()}
                update = self._formula(position)
                scaled = gradient.float() if share == 1.0 else gradient.float() * share
                updated = update(weight.float(), scaled, working, self._numbers_of(position, scaling))
                weight.copy_(updated)
                for part, tensor in state.items():
                    tensor.copy_(working[part])
        if self.auto_scaling is not None:
            self.auto_scaling.update()

    def read(self) -> Dict[str, Any]:
        """The optimizer's state as {"ipu_state", "ipu_param"}; weights per replica group are stacked."""
        logger.debug("Writing optimiser state tensors from IPU to host.")
        state = {}
        for position, copies in enumerate(self.state):
            is_split = self.trained[position].weight.is_split
            for part, form in self.parts[position].items():
                values = [copy[part] for copy in copies]
                state[form.name] = torch.stack(values) if is_split else values[0].clone()
        if self.auto_scaling is not None:
            state[FACTOR_NAME] = self.auto_scaling.factor.clone()
        return {"ipu_state": state, "ipu_param": {name: value.clone() for name, value in self.numbers.items()}}

    def write(self, state: Dict[str, Any]) -> None:
        """Take over a state that read() made; names it lacks keep their values."""
        logger.debug("Writing optimiser state tensors from host to IPU memory")
        for name, value in state["ipu_param"].items():
            if name in self.numbers:
                self.numbers[name] = value.clone().float()
        if self.auto_scaling is not None and FACTOR_NAME in state["ipu_state"]:
            self.auto_scaling.factor = state["ipu_state"][FACTOR_NAME].clone().float()
        for position, copies in enumerate(self.state):
            is_split = self.trained[position].weight.is_split
            for part, form in self.parts[position].items():
                if form.name in state["ipu_state"]:
                    value = state["ipu_state"][form.name]
                    for index, copy in enumerate(copies):
                        copy[part].copy_(value[index] if is_split else value)

    def _group(self, position: int) -> Dict[str, Setting]:
        group = self.trained[position].group
        return self.settings.defaults if group is None else self.settings.groups[group]

    def _momentum_of(self, position: int) -> bool:
        momentum = self._group(position).get("momentum")
        return momentum is not None and not (momentum.is_constant and momentum.value == 0)

    def has_combined_accumulator(self, position: int) -> bool:
        """Whether the velocity of the weight is its gradient accumulator too."""
        return self.settings.kind == OptimizerKind.SGD1 and self.has_momentum[position]

    def _state_parts(self, position: int) -> Dict[str, StateTensor]:
        settings, name = self.settings, self.trained[position].weight.name
        first, second = settings.first_order_type, settings.second_order_type
        if settings.kind in (OptimizerKind.SGD1, OptimizerKind.SGD2):
            prefix = "Accl" if settings.kind == OptimizerKind.SGD1 else "Accl1"
            velocity = StateTensor(f"{prefix}___{name}", first, 0.0, False)
            return {"velocity": velocity} if self.has_momentum[position] else {}
        if settings.kind in _ADAMS:
            parts = {
                "mean": StateTensor(f"Accl1___{name}", first, 0.0, False),
                "square": StateTensor(f"Accl2___{name}", second, 0.0, False),
            }
            if settings.kind != OptimizerKind.LAMB_NO_BIAS:
                parts["step"] = StateTensor(f"Step___{name}", torch.float32, 0.0, True)
            return parts
        parts = {"square": StateTensor(f"Accl1___{name}", first, float(settings.use_tf_variant), False)}
        if settings.kind == OptimizerKind.RMSPROP_CENTERED:
            parts["mean"] = StateTensor(f"Accl2___{name}", second, 0.0, False)
        if self.has_momentum[position]:
            parts["velocity"] = StateTensor(f"Accl3___{name}", second, 0.0, False)
        return parts

    def _formula(self, position: int) -> formulas.Update:
        kind = self.settings.kind
        if kind in (OptimizerKind.SGD1, OptimizerKind.SGD2):
            return formulas.sgd_with_momentum if self.has_momentum[position] else formulas.sgd_without_momentum
        if kind in _ADAMS:
            return _ADAMS[kind]
        return formulas.rmsprop_tf if self.settings.use_tf_variant else formulas.rmsprop

    def _write_numbers(self) -> None:
        self.numbers = {}
        if not self.settings.loss_scaling.is_constant:
            self.numbers["lossScaling_FLOAT"] = torch.tensor(float(self.settings.loss_scaling.value))
        for position, target in enumerate(self.trained):
            for name, setting in self._device_settings(position).items():
                if not setting.is_constant:
                    self.numbers[f"{name}___specific___{target.weight.name}"] = torch.tensor(float(setting.value))
        log_settings(self.settings)

    def _device_settings(self, position: int) -> Dict[str, Setting]:
        """The numbers of the weight's group in the device's own combinations."""
        return device_settings(self.settings, self._group(position), self.has_momentum[position])

    def _numbers_of(self, position: int, scaling: float) -> Dict[str, Any]:
        """Constants from the settings, variables from the device's tensors."""
        name = self.trained[position].weight.name
        values: Dict[str, Any] = {"lossScaling": scaling}
        for key, setting in self._device_settings(position).items():
            value = self.numbers.get(f"{key}___specific___{name}")
            values[key.rstrip("012") if key[-1] in "012" and "beta" not in key else key] = (
                setting.value if value is None else value
            )
        if "nesterov" in self._group(position):
            values["nesterov"] = self._group(position)["nesterov"].value
        return values

    def _clip_factor(self, gradients: Gradients, scaling: float) -> float:
        """max_norm / max(norm, max_norm), the norm over all weights and without the loss scale."""
        limit = self.settings.max_grad_norm
        if limit == float("inf") or not gradients:
            return 1.0
        norm = torch.stack([gradient.float().norm() for gradient in gradients.values()]).norm() / scaling
        return float(limit / norm.clamp(min=limit))
