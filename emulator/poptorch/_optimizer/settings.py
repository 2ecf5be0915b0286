"""What the device knows of an optimizer: its kind, its numbers, and which of them may change."""

from __future__ import annotations

import enum
import numbers
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch

from .. import optim
from .._logging import logger


class OptimizerKind(enum.IntEnum):
    """The optimizers of the device."""

    SGD1 = 0  # gradient accumulator and velocity in one tensor
    SGD2 = 1
    ADAM = 2
    ADAMW = 3
    ADAMW_NO_BIAS = 4
    RMSPROP = 5
    RMSPROP_CENTERED = 6
    LAMB = 7
    LAMB_NO_BIAS = 8


class Setting(NamedTuple):
    """A number, and whether the compiled model relies on it."""

    value: Any
    is_constant: bool


class OptimizerSettings(NamedTuple):
    """Everything the device knows of an optimizer; equal settings need no update."""

    kind: OptimizerKind
    loss_scaling: Setting
    accum_type: torch.dtype
    first_order_type: torch.dtype
    second_order_type: torch.dtype
    max_grad_norm: float
    use_tf_variant: bool
    defaults: Dict[str, Setting]
    groups: List[Dict[str, Setting]]


_OWN_CLASS: Dict[OptimizerKind, Any] = {
    OptimizerKind.SGD1: optim.SGD,
    OptimizerKind.SGD2: optim.SGD,
    OptimizerKind.ADAM: optim.Adam,
    OptimizerKind.ADAMW: optim.AdamW,
    OptimizerKind.ADAMW_NO_BIAS: optim.AdamW,
    OptimizerKind.RMSPROP: optim.RMSprop,
    OptimizerKind.RMSPROP_CENTERED: optim.RMSprop,
    OptimizerKind.LAMB: optim.LAMB,
    OptimizerKind.LAMB_NO_BIAS: optim.LAMB,
}
_PLAIN_CLASSES = {
    *_OWN_CLASS.values(),
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
}


def kind_of(optimizer: Any) -> OptimizerKind:
    """Return the device's optimizer for one of torch or of poptorch.optim.

    AdamW is asked for before Adam, since newer versions of torch derive it from Adam.

    Raises:
        AssertionError: any other optimizer, or groups that differ in `centered`.
    """
    if isinstance(optimizer, torch.optim.SGD):
        return OptimizerKind.SGD1 if getattr(optimizer, "use_combined_accum", False) else OptimizerKind.SGD2
    if isinstance(optimizer, torch.optim.AdamW):
        return OptimizerKind.ADAMW if getattr(optimizer, "bias_correction", True) else OptimizerKind.ADAMW_NO_BIAS
    if isinstance(optimizer, torch.optim.Adam):
        return OptimizerKind.ADAM
    if isinstance(optimizer, torch.optim.RMSprop):
        centered = [group["centered"] for group in optimizer.param_groups]
        if len(set(centered)) > 1:
            raise AssertionError(f"All parameter groups must have the same value for 'centered', got {centered}")
        return OptimizerKind.RMSPROP_CENTERED if centered[0] else OptimizerKind.RMSPROP
    if isinstance(optimizer, optim.LAMB):
        return OptimizerKind.LAMB if optimizer.bias_correction else OptimizerKind.LAMB_NO_BIAS  # type: ignore[attr-defined]
    raise AssertionError(
        f"Unsupported optimizer type {type(optimizer)}. "
        f"Types supported {', '.join(kind.name for kind in OptimizerKind)}"
    )


class AttributeTracker:
    """Warns once of each set of attributes that appear after the first setOptimizer: the device never sees them."""

    def __init__(self, relaxed: bool) -> None:
        self._log = logger.debug if relaxed else logger.warning
        self._known: Optional[Dict[str, List[str]]] = None
        self._said: List[str] = []

    def check(self, optimizer: Any, kind: OptimizerKind) -> None:
        """Note the optimizer's attributes the first time; later, name those that were not there then."""
        attributes = [
            name for name in optimizer.__dict__ if name not in ("defaults", "state", "param_groups", "variable_attrs")
        ]
        found = {"default group variable": list(optimizer.defaults), "optimizer attribute": attributes}
        for index, group in enumerate(optimizer.param_groups):
            found[f"group {index} attribute"] = [name for name in group if name != "params"]
        if self._known is None:
            in_groups = [name for what, names in found.items() if what != "optimizer attribute" for name in names]
            self._known = {"groups": in_groups, "optimizer": attributes}
            return
        for what, names in found.items():
            known = self._known["optimizer" if what == "optimizer attribute" else "groups"]
            unexpected = [name for name in names if name not in known]
            message = f"Ignoring unexpected {what} in {kind.name} optimizer: {unexpected}"
            if unexpected and message not in self._said:
                self._said.append(message)
                self._log(message)


def settings_of(optimizer: Any, tracker: AttributeTracker, auto_loss_scaling: bool) -> OptimizerSettings:
    """Read an optimizer.

    Raises:
        AssertionError: unsupported optimizer, or something else than a number where one is needed.
        ValueError: amsgrad, or an accumulator type that is neither half nor float.
    """
    kind = kind_of(optimizer)
    if type(optimizer) not in _PLAIN_CLASSES:
        logger.warning(
            "Optimizer `%s` is a subclass. Poptorch does not run Python optimizer code directly: "
            "the device updates the weights with its own formulas, whatever the subclass changes.",
            type(optimizer).__name__,
        )
    variables = getattr(optimizer, "variable_attrs", None)
    if variables is not None and auto_loss_scaling:
        variables.markAsVariable("loss_scaling")

    def setting(name: str, value: Any, is_default: Callable[[Any], bool]) -> Setting:
        return Setting(value, is_default(value) if variables is None else variables.isConstant(name))

    def read_group(group: Dict[str, Any]) -> Dict[str, Setting]:
        return _read_group(group, _OWN_CLASS[kind]._group_vars, kind, setting)

    tracker.check(optimizer, kind)
    scaling = getattr(optimizer, "loss_scaling", 1.0)
    first = "velocity_accum_type" if isinstance(optimizer, torch.optim.SGD) else "first_order_momentum_accum_type"
    return OptimizerSettings(
        kind=kind,
        loss_scaling=setting("loss_scaling", scaling, lambda value: value == 1.0 and not auto_loss_scaling),
        accum_type=_accumulator_type(optimizer, "accum_type"),
        first_order_type=_accumulator_type(optimizer, first),
        second_order_type=_accumulator_type(optimizer, "second_order_momentum_accum_type"),
        max_grad_norm=float(getattr(optimizer, "max_grad_norm", float("inf"))),
        use_tf_variant=bool(getattr(optimizer, "use_tf_variant", False)),
        defaults=read_group(optimizer.defaults),
        groups=[read_group(group) for group in optimizer.param_groups],
    )


def _accumulator_type(optimizer: Any, name: str) -> torch.dtype:
    dtype = getattr(optimizer, name, torch.float32)
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"{name} must be set to either torch.float16 or torch.float32 not {dtype}")
    return dtype


# For torch's own optimizers: the value at which an attribute counts as constant; None: never; "always": always.
_CONSTANT_AT: Dict[str, Any] = {
    "lr": None,
    "weight_decay": 0.0,
    "momentum": 0.0,
    "velocity_scaling": 1.0,
    "dampening": 0.0,
    "eps": 1e-8,
    "max_weight_norm": 65500.0,
    "alpha": "always",
    "nesterov": "always",
    "betas": "always",
}


def _read_group(
    group: Dict[str, Any], names: List[str], kind: OptimizerKind, setting: Callable[..., Setting]
) -> Dict[str, Setting]:
    read: Dict[str, Setting] = {}
    for name in names:
        if name == "amsgrad":
            if group[name]:
                raise ValueError("Only non-amsgrad Adam/AdamW optimizers are supported.")
            continue
        if name == "centered":
            continue
        value = group.get(name, 1.0) if name == "velocity_scaling" else group[name]
        constant_at = _CONSTANT_AT[name]
        if name == "weight_decay" and kind == OptimizerKind.ADAMW:
            constant_at = 1e-2
        result = setting(name, value, lambda v, at=constant_at: at == "always" or v == at)
        if name == "betas":
            for index, beta in enumerate(_pair(value)):
                read[f"beta{index + 1}"] = Setting(beta, result.is_constant)
            continue
        _require_number(value, name)
        read[name] = result
    return read


def _pair(value: Any) -> Any:
    if not isinstance(value, tuple) or len(value) != 2:
        raise AssertionError(f"Expected a pair for betas but got {value} instead")
    for index, element in enumerate(value):
        _require_number(element, f"betas[{index}]")
    return value


def _require_number(value: Any, name: str) -> None:
    if not isinstance(value, numbers.Number):
        raise AssertionError(f"Expected a number for {name} but got {value} instead")
