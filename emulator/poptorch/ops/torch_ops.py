"""The operators of torch.ops.poptorch that programs call by themselves: scopes for names, and the device's cast."""

from __future__ import annotations

import torch

from .._device import device_run
from ..errors import backend_error

_TYPES = {"FLOAT": torch.float32, "FLOAT16": torch.float16}


def _push_name_scope(name: str) -> None:
    names = None if device_run.current is None else device_run.current.names
    if names is not None:
        names.enter(name)


def _pop_name_scope() -> None:
    names = None if device_run.current is None else device_run.current.names
    if names is not None:
        names.leave()


def _internal_cast(self: torch.Tensor, dtype: str) -> torch.Tensor:
    if device_run.current is None:  # half precision is the device's alone
        return self.float() if dtype == "FLOAT16" else self
    if dtype not in _TYPES:
        raise backend_error(f"internal_cast to {dtype!r}: the device casts to {', '.join(_TYPES)}")
    return self.to(_TYPES[dtype])


# A library unregisters its operators when it is thrown away.
_library = torch.library.Library("poptorch", "DEF")
for _schema, _kernel in (
    ("push_name_scope(str name) -> ()", _push_name_scope),
    ("pop_name_scope() -> ()", _pop_name_scope),
    ("internal_cast(Tensor self, str dtype) -> Tensor", _internal_cast),
):
    _name = _library.define(_schema)
    # Autograd and vmap look through the operator at what its kernel computes with.
    for _key in ("CompositeImplicitAutograd", "FuncTorchBatched"):
        _library.impl(_name, _kernel, _key)
