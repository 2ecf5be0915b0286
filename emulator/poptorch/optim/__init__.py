"""The optimizers: torch's with the device's extra arguments.

An argument given explicitly is variable: it may change between calls. The others are constants of the compiled model.
Their Python step() never runs; the device has formulas of its own (optimizer_update).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch

from .._logging import logger
from .lamb import lamb_step


class VariableAttributes:
    """Which attributes of an optimizer may change after compilation."""

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._variable_attributes = variable_attributes
        self._allowed_attributes = allowed_attributes

    def isConstant(self, attr: str) -> bool:
        """Whether the attribute is fixed by the compilation."""
        return attr not in self._variable_attributes

    def markAsConstant(self, attr: str) -> None:
        """Fix the attribute's value at compilation."""
        self._check(attr)
        self._variable_attributes = [name for name in self._variable_attributes if name != attr]

    def markAsVariable(self, attr: str) -> None:
        """Let the attribute change after compilation."""
        self._check(attr)
        self._variable_attributes = [*self._variable_attributes, attr]

    def _check(self, attr: str) -> None:
        if attr not in self._allowed_attributes:
            raise AssertionError(f"Unknown attribute {attr}, allowed values: {self._allowed_attributes}")


class Optimizer:
    """What the optimizers of this module add to torch's: arguments, and the state on the device."""

    _child_only: List[str] = []
    _child_vars = ["loss_scaling"]
    _group_vars: List[str] = []

    def __init__(self) -> None:
        self._state_dict: Dict[str, Any] = {"ipu_state": None, "ipu_param": None}
        self.ipu_state_is_dirty = False
        self.host_state_is_dirty = False

    def _take(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """Set the extra attributes from the constructor's local variables; return the arguments for torch's."""
        given = {key: value for key, value in given.items() if key not in ("self", "__class__") and value is not None}
        self._given = list(given)
        for name in self._child_only:
            setattr(self, name, given.get(name, _EXTRA_DEFAULTS[name]))
            if name.endswith("accum_type") and getattr(self, name) not in (torch.float16, torch.float32):
                raise AssertionError(f"{name} must be either torch.float32 or torch.float16, got {given[name]}")
        return {key: value for key, value in given.items() if key not in self._child_only}

    def _finish(self) -> None:
        allowed = list(self.defaults) + self._child_vars  # type: ignore[attr-defined]
        self.variable_attrs = VariableAttributes(self._given, allowed)
        del self._given

    def state_dict(self) -> Dict[str, Any]:
        """torch's state with "ipu_state" and "ipu_param", the tensors on the device (None before compilation)."""
        return self.get_state_dict()

    def get_state_dict(self) -> Dict[str, Any]:
        """Return the state as last read from the device."""
        return {**self._state_dict, **torch.optim.Optimizer.state_dict(self)}  # type: ignore[arg-type]

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Load a state made by state_dict(); it goes to the device before its next use.

        Raises:
            RuntimeError: an empty state, or one of an optimizer of torch.
        """
        self.set_state_dict(state)
        torch.optim.Optimizer.load_state_dict(self, state)  # type: ignore[arg-type]

    def set_state_dict(self, state: Dict[str, Any]) -> None:
        """Replace the state that goes to the device."""
        if not state:
            raise RuntimeError("Cannot load optimizer state dictionary because it is empty.")
        if "ipu_state" not in state or "ipu_param" not in state:
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        self._state_dict = state
        self.ipu_state_is_dirty = True
        self.host_state_is_dirty = False

    def has_state(self) -> bool:
        """Whether there is a state of the device."""
        return self._state_dict.get("ipu_state") is not None and self._state_dict.get("ipu_param") is not None

    def __getstate__(self) -> Dict[str, Any]:
        state = dict(torch.optim.Optimizer.__getstate__(self))  # type: ignore[arg-type]
        for name in ("variable_attrs", "_state_dict", *self._child_only):
            if name in self.__dict__:  # velocity_scaling is a group's attribute
                state[name] = self.__dict__[name]
        state["ipu_state_is_dirty"] = self.has_state()
        state["host_state_is_dirty"] = False
        return state


_EXTRA_DEFAULTS: Dict[str, Any] = {
    "loss_scaling": 1.0,
    "velocity_scaling": 1.0,
    "use_combined_accum": False,
    "accum_type": torch.float32,
    "velocity_accum_type": torch.float32,
    "first_order_momentum_accum_type": torch.float32,
    "second_order_momentum_accum_type": torch.float32,
    "max_grad_norm": float("inf"),
    "bias_correction": True,
    "use_tf_variant": False,
}
_MOMENT_TYPES = ["accum_type", "first_order_momentum_accum_type", "second_order_momentum_accum_type"]


class SGD(Optimizer, torch.optim.SGD):
    """Stochastic gradient descent; velocity_scaling counts only with use_combined_accum."""

    _child_only = [
        "loss_scaling",
        "velocity_scaling",
        "use_combined_accum",
        "accum_type",
        "velocity_accum_type",
        "max_grad_norm",
    ]
    _group_vars = ["lr", "momentum", "dampening", "weight_decay", "nesterov", "velocity_scaling"]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: Optional[float] = None,
        dampening: Optional[float] = None,
        weight_decay: Optional[float] = None,
        nesterov: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        velocity_scaling: Optional[float] = None,
        use_combined_accum: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        velocity_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        Optimizer.__init__(self)
        own = self._take(locals())
        torch.optim.SGD.__init__(self, **own)
        scaling = self.__dict__.pop("velocity_scaling")  # a group's attribute, not the optimizer's
        if self.use_combined_accum:  # type: ignore[attr-defined]
            self.defaults["velocity_scaling"] = scaling
            for group in self.param_groups:
                group.setdefault("velocity_scaling", scaling)
        elif velocity_scaling is not None:
            logger.warning("velocity_scaling value ignored when using the separate variant (use_combined_accum=False).")
        self._finish()


class Adam(Optimizer, torch.optim.Adam):
    """Adam with weight decay as an L2 penalty."""

    _child_only = ["loss_scaling", *_MOMENT_TYPES, "max_grad_norm"]
    _group_vars = ["lr", "betas", "eps", "weight_decay", "amsgrad"]

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        Optimizer.__init__(self)
        own = self._take(locals())
        torch.optim.Adam.__init__(self, **own)
        self._finish()


class AdamW(Optimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay; bias_correction=False changes nothing, as in PopTorch 3.4."""

    _child_only = ["loss_scaling", "bias_correction", *_MOMENT_TYPES, "max_grad_norm"]
    _group_vars = ["lr", "betas", "weight_decay", "eps", "amsgrad"]

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        Optimizer.__init__(self)
        own = self._take(locals())
        torch.optim.AdamW.__init__(self, **own)
        self._finish()


class RMSprop(Optimizer, torch.optim.RMSprop):
    """RMSprop, in torch's or (use_tf_variant) TensorFlow's form."""

    _child_only = ["loss_scaling", *_MOMENT_TYPES, "use_tf_variant"]
    _group_vars = ["lr", "momentum", "weight_decay", "alpha", "eps", "centered"]

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        alpha: Optional[float] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        momentum: Optional[float] = None,
        centered: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        use_tf_variant: Optional[bool] = None,
    ) -> None:
        Optimizer.__init__(self)
        own = self._take(locals())
        torch.optim.RMSprop.__init__(self, **own)
        self._finish()


class LAMB(Optimizer, torch.optim.Optimizer):
    """Layer-wise adaptive moments with decoupled weight decay."""

    _child_only = ["loss_scaling", "bias_correction", *_MOMENT_TYPES]
    _group_vars = ["lr", "weight_decay", "betas", "eps", "max_weight_norm"]

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        max_weight_norm: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
    ) -> None:
        Optimizer.__init__(self)
        own = self._take(locals())
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "max_weight_norm": 65500.0}
        defaults.update((name, value) for name, value in own.items() if name != "params")
        torch.optim.Optimizer.__init__(self, params, defaults)
        self._finish()

    def step(self, closure: Optional[Callable[[], float]] = None) -> Optional[float]:  # type: ignore[override]
        """Do one step on the host, for programs that train there."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    lamb_step(parameter, self.state[parameter], group, bool(self.bias_correction))  # type: ignore[attr-defined]
        return loss
