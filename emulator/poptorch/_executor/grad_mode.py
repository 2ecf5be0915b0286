"""The program's grad mode, which forward() sees in inference: it may ask for gradients itself."""

from __future__ import annotations

import functools
from typing import Any, Callable, TypeVar, cast

import torch

_Call = TypeVar("_Call", bound=Callable[..., Any])


def outside_inference_mode(call: _Call) -> _Call:
    """Leave torch.inference_mode() during a call, whose tensors must last longer, but not torch.no_grad()."""

    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with_gradients = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradients):
            return call(*args, **kwargs)

    return cast(_Call, wrapped)
