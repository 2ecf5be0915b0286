"""Operations of a model that reach back to the host: printing, calling Python, the program's own compiled ops."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Callable, ContextManager, Dict, List, Optional, Tuple, Union

import torch

from .._device import device_run
from .._device.device_run import DeviceRun
from .._device.marks import mark_on_device, mark_variable
from ..errors import createPoptorchError
from .tensor_text import TextForm


def ipu_print_tensor(
    tensor: torch.Tensor,
    title: str = "",
    print_gradient: bool = True,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: str = "auto",
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> torch.Tensor:
    """Pass a tensor on, printing its value, and its gradient when that is computed, on stderr.

    A tensor with more than summarise_threshold elements shows the first and last edge_items of each dimension; rows
    longer than max_line_width are broken; digits are significant ones, in fixed or scientific form.
    """
    if not isinstance(tensor, torch.Tensor):
        raise createPoptorchError(f"ipu_print_tensor takes a torch.Tensor. {type(tensor)} is not supported.")
    if float_format not in ("auto", "fixed", "scientific", "none"):
        raise KeyError(float_format)
    run = device_run.current
    if run is not None and run.is_tracing:
        run.calls_host = True
        return tensor
    form = TextForm(
        summarise_threshold, edge_items, max_line_width, digits, float_format, separator, open_bracket, close_bracket
    )
    _print(title, tensor, form)
    if print_gradient and tensor.requires_grad:
        with torch._C.DisableTorchFunction():  # the device prints this one
            tensor.register_hook(lambda gradient: _print(f"{title}_gradient" if title else "gradient", gradient, form))
    return tensor


def _print(title: str, tensor: torch.Tensor, form: TextForm) -> None:
    with torch._C.DisableTorchFunction():
        values = form.text(tensor.detach())
    print(f"{title}: {values}" if title else values, file=sys.stderr)


class CPU:
    """A function or module that runs on the host in the middle of a model; no gradient passes through it.

    Args:
        layer_to_call: takes and returns tensors; the parameters of a module are not trained.
        ID: a name of its own.
    """

    def __init__(self, layer_to_call: Callable[..., Any], ID: str) -> None:
        self._layer_to_call = layer_to_call
        self._ID = ID
        if isinstance(layer_to_call, torch.nn.Module):
            layer_to_call.requires_grad_(False)
        self.in_shapes: List[torch.Size] = []
        self.out_shapes: List[torch.Size] = []
        self.inputs: List[torch.Tensor] = []
        self.outputs: List[torch.Tensor] = []

    def registerPersistentData(self) -> None:
        """Make the tensors that execute() reads and writes."""
        self.inputs = [torch.zeros(shape) for shape in self.in_shapes]
        self.outputs = [torch.zeros(shape) for shape in self.out_shapes]

    def execute(self) -> None:
        """Call the function on `inputs` and copy its results into `outputs`."""
        results = self._layer_to_call(*self.inputs)
        for kept, result in zip(self.outputs, results if isinstance(results, (list, tuple)) else [results]):
            kept.copy_(result)

    def __call__(self, *input: torch.Tensor, **kwargs: Any) -> Any:
        run = device_run.current
        if run is not None:
            run.calls_host = True
        device_run.current = None  # the function runs on the host
        try:
            with torch._C.DisableTorchFunction(), _unwatched(run):
                results = self._layer_to_call(*(tensor.detach() for tensor in input))
        finally:
            device_run.current = run
        outputs = list(results) if isinstance(results, (list, tuple)) else [results]
        if run is not None:
            outputs = [mark_on_device(mark_variable(output.detach())) for output in outputs]
        self.in_shapes = [tensor.shape for tensor in input]
        self.out_shapes = [tensor.shape for tensor in outputs]
        return outputs if isinstance(results, (list, tuple)) else outputs[0]


def _unwatched(run: Optional[DeviceRun]) -> ContextManager[None]:
    """Return the host computes everything."""
    return contextlib.nullcontext() if run is None or run.operators is None else run.operators.paused()


Attributes = Dict[str, Union[float, int, str, list, tuple]]


def custom_op(
    inputs: Tuple[torch.Tensor, ...],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Tuple[torch.Tensor, ...],
    attributes: Optional[Attributes] = None,
) -> List[torch.Tensor]:
    """Refused, after the checks of its attributes: a program's own operation is compiled code for the IPU.

    Raises:
        ValueError: attributes that no compiled operation could take.
        Error: always, for valid ones.
    """
    for key, value in (attributes or {}).items():
        _check_attribute(key, value)
    raise createPoptorchError(
        f"custom operation {domain}.{name} (version {domain_version}) is compiled for the IPU and cannot be emulated; "
        "compute it with torch operations where poptorch.isRunningOnIpu() does not help"
    )


def _check_attribute(key: Any, value: Any) -> None:
    if not isinstance(key, str):
        raise ValueError(f"All attribute keys must be strings, got {key!r}.")
    if not isinstance(value, (float, int, str, list, tuple)):
        raise ValueError(f"Attribute values must be floats, ints, strings or lists/tuples of one, got {value!r}.")
    elements = value if isinstance(value, (list, tuple)) else [value]
    if any(not isinstance(element, type(elements[0])) for element in elements):
        raise ValueError("The types in a list/tuple attribute must all be the same.")
    for text in (key, *elements):
        if isinstance(text, str) and not text.isascii():
            raise ValueError(f"{text} contains non-ASCII characters.")
