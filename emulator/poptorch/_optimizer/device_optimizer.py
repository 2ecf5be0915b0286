"""The optimizer on the device: its numbers and state as named tensors, and one update of all weights."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

import torch

from .._device.device_weights import DeviceTensor
from .._device.loss_scaling import FACTOR_NAME, AutomaticLossScaling
from .._logging import logger
from ..errors import backend_error
from . import formulas
from .device_numbers import check_constants, device_settings
from .settings import OptimizerKind, OptimizerSettings, Setting
from .stochastic_rounding import StochasticRounding
from .update_log import log_settings

Place = Tuple[int, int]  # position of the weight, replica group
Gradients = Dict[Place, torch.Tensor]
_ADAMS = {
    OptimizerKind.ADAM: formulas.ADAM,
    OptimizerKind.ADAMW: formulas.ADAMW,
    OptimizerKind.ADAMW_NO_BIAS: formulas.ADAMW,  # as PopTorch 3.4: bias is corrected all the same
    OptimizerKind.LAMB: formulas.LAMB,
    OptimizerKind.LAMB_NO_BIAS: formulas.LAMB,
}
_UNDO_LOSS_SCALE = ("scaledLearningRate0", "dampeningScaleFactor1", "dampeningScaleFactor2")


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
        divisor: makes the mean of summed gradients, in the update.
        auto_scaling: changes the loss scale; None: it stays.
        rounding: of updated float16 weights; None: to the nearest.
    """

    def __init__(
        self,
        settings: OptimizerSettings,
        trained: List[Trained],
        divisor: int,
        auto_scaling: Optional[AutomaticLossScaling] = None,
        rounding: Optional[StochasticRounding] = None,
    ) -> None:
        self.settings = settings
        self._divisor = divisor
        self.trained = trained
        self.auto_scaling = auto_scaling
        self._rounding = rounding
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
        self._shown_numbers = self.numbers
        self._write_numbers()
        self.last_loss_scaling = self.loss_scaling  # of the last update

    @property
    def loss_scaling(self) -> float:
        """What the loss's gradient is multiplied by: the program's scale, times the device's own factor."""
        return float(self.settings.loss_scaling.value) * self._factor

    @property
    def _factor(self) -> float:
        return 1.0 if self.auto_scaling is None else float(self.auto_scaling.factor)

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
        self.last_loss_scaling = self.loss_scaling
        numbers = {position: self._numbers_of(position) for position in {position for position, _ in gradients}}
        with torch.no_grad():
            directions: Iterable[Tuple[Place, torch.Tensor]] = (
                (place, self._computed(place, self._formula(place[0]).direction, gradient.float(), numbers[place[0]]))
                for place, gradient in gradients.items()
            )
            if self._clips and gradients:
                directions = _clipped(dict(directions), self.settings.max_grad_norm).items()
            for place, direction in directions:
                position, copy = place
                updated = self._computed(place, self._formula(position).update, direction, numbers[position])
                weight = self.trained[position].weight.values[copy]
                if self._rounding is not None and weight.dtype == torch.float16:
                    updated = self._rounding(updated)
                weight.copy_(updated)
        if self.auto_scaling is not None:
            self.auto_scaling.update()

    def _computed(
        self, place: Place, function: formulas.Step, tensor: torch.Tensor, numbers: Dict[str, Any]
    ) -> torch.Tensor:
        """Apply a weight's formula in float32; its state is kept in the state's types."""
        position, copy = place
        state = self.state[position][copy]
        working = {part: kept.float() for part, kept in state.items()}
        weight = self.trained[position].weight.values[copy].float()
        result = function(weight, tensor, working, numbers)
        for part, kept in state.items():
            if working[part] is not kept:
                kept.copy_(working[part])
        return result

    def read(self) -> Dict[str, Any]:
        """Return the optimizer's state as {"ipu_state", "ipu_param"}; weights per replica group are stacked."""
        logger.debug("Writing optimiser state tensors from IPU to host.")
        state = {}
        for position, copies in enumerate(self.state):
            is_split = self.trained[position].weight.is_split
            for part, form in self.parts[position].items():
                values = [copy[part] for copy in copies]
                state[form.name] = torch.stack(values) if is_split else values[0].clone()
        if self.auto_scaling is not None:
            state[FACTOR_NAME] = self.auto_scaling.factor.clone()
        return {"ipu_state": state, "ipu_param": {name: value.clone() for name, value in self._shown_numbers.items()}}

    def write(self, state: Dict[str, Any]) -> None:
        """Take over a state that read() made; names it lacks keep their values.

        Its numbers are shown by read() until there are new ones, and never computed with: those are the optimizer's.
        """
        logger.debug("Writing optimiser state tensors from host to IPU memory")
        loaded = {name: value.clone().float() for name, value in state["ipu_param"].items() if name in self.numbers}
        self._shown_numbers = {**self._shown_numbers, **loaded}
        if self.auto_scaling is not None and FACTOR_NAME in state["ipu_state"]:
            self.auto_scaling.factor = state["ipu_state"][FACTOR_NAME].clone().float()
        for position, copies in enumerate(self.state):
            is_split = self.trained[position].weight.is_split
            for part, form in self.parts[position].items():
                if form.name in state["ipu_state"]:
                    value = state["ipu_state"][form.name]
                    for index, copy in enumerate(copies):
                        copy[part].copy_(value[index] if is_split else value)

    def reset(self) -> bool:
        """Give the state its first values; whether there was another to lose."""
        is_lost = False
        for parts, copies in zip(self.parts, self.state):
            for copy in copies:
                for part, form in parts.items():
                    is_lost = is_lost or bool((copy[part] != form.initial).any())
                    copy[part].fill_(form.initial)
        if self.auto_scaling is not None:
            self.auto_scaling.factor = torch.tensor(1.0)
        return is_lost

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

    def _formula(self, position: int) -> formulas.Formula:
        kind = self.settings.kind
        if kind in (OptimizerKind.SGD1, OptimizerKind.SGD2):
            return formulas.SGD_WITH_MOMENTUM if self.has_momentum[position] else formulas.SGD_WITHOUT_MOMENTUM
        if kind in _ADAMS:
            return _ADAMS[kind]
        return formulas.RMSPROP_TF if self.settings.use_tf_variant else formulas.RMSPROP

    @property
    def _clips(self) -> bool:
        is_rmsprop = self.settings.kind in (OptimizerKind.RMSPROP, OptimizerKind.RMSPROP_CENTERED)
        return self.settings.max_grad_norm != float("inf") and not is_rmsprop

    def _write_numbers(self) -> None:
        self.numbers = {}
        if not self.settings.loss_scaling.is_constant:
            self.numbers["lossScaling_FLOAT"] = torch.tensor(float(self.settings.loss_scaling.value))
        for position, target in enumerate(self.trained):
            for name, setting in self._device_settings(position).items():
                if not setting.is_constant:
                    self.numbers[f"{name}___specific___{target.weight.name}"] = torch.tensor(float(setting.value))
        self._shown_numbers = self.numbers
        log_settings(self.settings)

    def _device_settings(self, position: int) -> Dict[str, Setting]:
        """Return the numbers of the weight's group in the device's own combinations."""
        return device_settings(self.settings, self._group(position), self.has_momentum[position], self._divisor)

    def _numbers_of(self, position: int) -> Dict[str, Any]:
        """Constants from the settings, variables from the device's tensors; the device's own loss scale undone."""
        name = self.trained[position].weight.name
        values: Dict[str, Any] = {"gradientScaling": self.loss_scaling * self._divisor}
        for key, setting in self._device_settings(position).items():
            value = self.numbers.get(f"{key}___specific___{name}", setting.value)
            if key in _UNDO_LOSS_SCALE:
                value = value / self._factor
            values[key.rstrip("012") if "beta" not in key else key] = value
        if "nesterov" in self._group(position):
            values["nesterov"] = self._group(position)["nesterov"].value
        return values


def _clipped(directions: Gradients, limit: float) -> Gradients:
    """Return times limit / max(norm, limit), the norm over all weights."""
    norm = torch.stack([direction.norm() for direction in directions.values()]).norm()
    factor = limit / norm.clamp(min=limit)
    return {place: direction * factor for place, direction in directions.items()}
