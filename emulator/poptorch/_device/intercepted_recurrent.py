"""torch's recurrent layers on the device, which has the plain ones alone."""

from __future__ import annotations

from typing import Any, Callable, Dict, Tuple

import torch

from ..errors import backend_error
from .device_run import DeviceRun

_NAMES = {torch.lstm: "LSTM", torch.gru: "GRU", torch.rnn_tanh: "RNN", torch.rnn_relu: "RNN"}


def _recurrent(run: DeviceRun, func: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """Refuse what strict mode refuses, else call.

    Raises:
        Error: several layers, both directions, dropout between layers, or an LSTM or RNN without biases.
    """
    if run.operators is not None:
        first = next(index for index, value in enumerate(args) if isinstance(value, bool))
        has_biases, layers, dropout, _, is_bidirectional = args[first : first + 5]
        name = _NAMES[func]
        verb = " is" if name == "RNN" else ""  # one handler has other words than the two others
        if not has_biases and name != "GRU":
            raise backend_error(f"{name} without biases{verb} not supported")
        if layers != 1:
            raise backend_error(f"Only {name} with 1 layer{verb} supported")
        if dropout != 0.0:
            raise backend_error(f"{name} only supports dropout = 0.0")
        if is_bidirectional:
            raise backend_error(f"{'Bidirectional' if verb else 'bidirectional'} {name}{verb} not supported")
    return func(*args, **kwargs)


RECURRENT_HANDLERS = {func: _recurrent for func in _NAMES}
