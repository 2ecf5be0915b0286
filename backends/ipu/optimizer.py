"""The optimizer on an IPU and its state, from and to the form that checkpoints have on every device."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from backends.errors import DeviceError
from configs.schema.learning import OptimizerConfig
from training.optimizer_state import check_optimizer_state
from training.rmsprop import RMSpropTF


class StatePart(NamedTuple):
    """One tensor that an optimizer keeps for each weight."""

    host_name: str  # in torch's state dict
    device_prefix: str  # of its name on the device, followed by ___ and the weight's name
    is_scaled: bool = False  # the device's value is multiplied by the loss scale

    def is_there(self, group: Mapping[str, Any]) -> bool:
        """Whether an optimizer with these settings keeps it."""
        return self.host_name != "momentum_buffer" or group["momentum"] > 0


class Form(NamedTuple):
    """How an optimizer of the host is said to PopTorch: the same formula, other names."""

    build: Callable[[torch.optim.Optimizer, Any, float], Any]
    parts: Tuple[StatePart, ...]


class IpuOptimizer:
    """The device's optimizer beside its twin on the host, which never steps but has the form that checkpoints have.

    Args:
        host: over the network's parameters.
        model: the module that runs on the device; its names are those of the device's tensors.
        optimizers: the module poptorch.optim.
        loss_scaling: factor of the loss in backward; updates are not affected by it in exact arithmetic.
    """

    def __init__(self, host: torch.optim.Optimizer, model: nn.Module, optimizers: Any, loss_scaling: float) -> None:
        self._host, self._scale = host, loss_scaling
        self._parts = _FORMS[type(host)].parts
        self.device = _FORMS[type(host)].build(host, optimizers, loss_scaling)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._names: List[str] = [names[id(value)] for group in host.param_groups for value in group["params"]]
        self._loaded: Dict[int, Dict[str, Tensor]] = {}

    def set_learning_rate(self, value: float) -> None:
        """For the next call; the executor's setOptimizer(device) must follow."""
        for group in (*self._host.param_groups, *self.device.param_groups):
            group["lr"] = value

    def state(self, on_device: bool) -> Dict[str, Any]:
        """torch's state dict, float32, on the host.

        Args:
            on_device: whether the executor runs. Before, and until it was sent, the state is what `load` was given.
        """
        kept = self._read() if on_device and not self._loaded else self._loaded
        return {"state": kept, "param_groups": self._host.state_dict()["param_groups"]}

    def load(self, state: Mapping[str, Any], is_updated: bool = True) -> None:
        """Take over a state dict of the host's form; `write_loaded` sends it.

        Args:
            state: a state dict of the host's form.
            is_updated: whether it is of after a first update.

        Raises:
            CheckpointError: it is not the state of such an optimizer.
        """
        check_optimizer_state(self._host, state, is_updated)
        self._loaded = {
            index: {name: torch.as_tensor(value) for name, value in kept.items() if value is not None}
            for index, kept in state["state"].items()
        }

    def write_loaded(self) -> None:
        """Put what `load` took over in place of the device's state, once the executor is compiled and attached."""
        if not self._loaded:
            return
        complete = self.device.state_dict()
        on_device = dict(complete["ipu_state"])
        for index, kept in self._loaded.items():
            for part in self._parts_used():
                scale = self._scale if part.is_scaled else 1.0
                on_device[self._name(index, part, on_device)] = kept[part.host_name].float() * scale
        self.device.load_state_dict({**complete, "ipu_state": on_device})
        self._loaded = {}

    def _read(self) -> Dict[int, Dict[str, Tensor]]:
        on_device = self.device.state_dict()["ipu_state"]
        return {
            index: {
                part.host_name: on_device[self._name(index, part, on_device)].float()
                / (self._scale if part.is_scaled else 1.0)
                for part in parts
            }
            for parts in [self._parts_used()]
            for index in range(len(self._names))
            if parts
        }

    def _parts_used(self) -> List[StatePart]:
        """SGD without momentum has no velocity."""
        return [part for part in self._parts if part.is_there(self._host.param_groups[0])]

    def _name(self, index: int, part: StatePart, on_device: Mapping[str, Tensor]) -> str:
        name = f"{part.device_prefix}___{self._names[index]}"
        if name not in on_device:
            raise DeviceError(
                f"the device keeps no {name} (it has {', '.join(list(on_device)[:3])}, ...): this version of PopTorch "
                "names optimizer state differently from 3.4"
            )
        return name


def require_formula(host: torch.optim.Optimizer) -> None:
    """Check that PopTorch has an optimizer with the same formula.

    Raises:
        DeviceError: it has none.
    """
    if type(host) not in _FORMS:
        raise DeviceError(
            f"PopTorch has no optimizer with the formula of {type(host).__name__} (its LAMB scales the update of "
            "vectors too); use optimizer.name sgd, rmsprop or adamw on IPUs"
        )


def refuse_clipping(config: OptimizerConfig) -> None:
    """Refuse gradient clipping: what PopTorch's max_grad_norm limits is another norm.

    With momentum it is that of the update, for AdamW that of the gradient, whose norm is not reported; RMSprop has no
    such argument.

    Raises:
        DeviceError: clip_norm is given.
    """
    if config.clip_norm is not None:
        raise DeviceError(
            f"optimizer.clip_norm {config.clip_norm} limits the gradient, which PopTorch does for none of these "
            "optimizers (its max_grad_norm limits the update after momentum, RMSprop has none, and the norm is not "
            "reported); remove it for IPUs"
        )


def _build_sgd(host: torch.optim.Optimizer, optimizers: Any, loss_scaling: float) -> Any:
    """v = momentum v + g + weight_decay w, w -= lr v (Nesterov: lr (g + weight_decay w + momentum v)), v = 0 at first.

    As torch's without dampening, whose first velocity is g.
    """
    first = host.param_groups[0]
    momentum = {"momentum": first["momentum"], "nesterov": first["nesterov"]} if first["momentum"] else {}
    return optimizers.SGD(
        _groups(host),
        lr=first["lr"],
        weight_decay=first["weight_decay"],
        loss_scaling=loss_scaling,
        use_combined_accum=False,  # a velocity of its own, as checkpoints have it
        **momentum,
    )


def _build_rmsprop(host: torch.optim.Optimizer, optimizers: Any, loss_scaling: float) -> Any:
    """Return the formula of training.rmsprop.RMSpropTF."""
    first = host.param_groups[0]
    return optimizers.RMSprop(
        _groups(host),
        lr=first["lr"],
        alpha=first["square_decay"],
        eps=first["eps"],
        weight_decay=first["weight_decay"],
        momentum=first["momentum"],
        loss_scaling=loss_scaling,
        use_tf_variant=True,
    )


def _build_adamw(host: torch.optim.Optimizer, optimizers: Any, loss_scaling: float) -> Any:
    """Return the formula of torch.optim.AdamW, bias corrected."""
    first = host.param_groups[0]
    return optimizers.AdamW(
        _groups(host),
        lr=first["lr"],
        betas=tuple(first["betas"]),
        eps=first["eps"],
        weight_decay=first["weight_decay"],
        loss_scaling=loss_scaling,
    )


def _groups(host: torch.optim.Optimizer) -> List[Dict[str, Any]]:
    """With and without weight decay. What the builders give by name, these too, may change between calls."""
    return [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in host.param_groups]


# Accumulators and state stay float32, PopTorch's default: small gradients would vanish in half precision.
# PopTorch 3.4 scales the velocity of SGD as the loss is scaled, and no other state.
_FORMS: Dict[type, Form] = {
    torch.optim.SGD: Form(_build_sgd, (StatePart("momentum_buffer", "Accl1", is_scaled=True),)),
    RMSpropTF: Form(_build_rmsprop, (StatePart("square", "Accl1"), StatePart("velocity", "Accl3"))),
    torch.optim.AdamW: Form(
        _build_adamw, (StatePart("exp_avg", "Accl1"), StatePart("exp_avg_sq", "Accl2"), StatePart("step", "Step"))
    ),
}
