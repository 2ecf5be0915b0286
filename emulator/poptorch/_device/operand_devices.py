"""On which device a function computes, and that its operands are all there.

Tensors of the host come into a forward pass from outside: attributes of modules that are no buffers, tensors made by
functions that PopTorch does not send to the IPU, layers in a plain list.
"""

from __future__ import annotations

from typing import Any, Callable, Container, Dict, Sequence, Tuple

import torch

from ..errors import backend_error
from ..structures import tensors_in
from .marks import is_on_device, is_variable

# Those that PopTorch gives the device "ipu" where the program gives none.
FACTORIES = {
    getattr(torch, name)
    for name in (
        "arange empty full full_like linspace logspace ones rand randint randn randperm range tensor zeros zeros_like"
    ).split()
}
# They look at nothing but the shape or device of their other operand, or copy it to the device.
_TAKE_BOTH = frozenset(
    "to type_as copy_ expand_as view_as reshape_as broadcast_tensors is_same_size result_type can_cast promote_types "
    "__getitem__ __setitem__ __get__ __set__ __delete__ __deepcopy__ __reduce_ex__ _getitem".split()
)
_SCALAR_TYPES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.bool: "Bool",
}


def is_forced_to_device(func: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether PopTorch sends a tensor that is made without a device to the IPU, with a warning."""
    return func in FACTORIES or (func is torch.normal and not tensors_in([args, kwargs]))


def is_computed_on_device(func: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether the result is on the device: an operand is, or it is made or sent there.

    The emulator's device is called "cpu", so that any device that the program names is taken for it.
    """
    if any(is_on_device(tensor) for tensor in tensors_in([args, kwargs])):
        return True
    if kwargs.get("device") is not None or is_forced_to_device(func, args, kwargs):
        return True
    return func is torch.Tensor.to and any(isinstance(arg, (torch.device, str)) for arg in args)


def require_one_device(
    func: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any], made: Container[int]
) -> None:
    """Refuse tensors of the host among operands of the device.

    Args:
        func: what is called.
        args: its arguments by position.
        kwargs: its arguments by name.
        made: the addresses of the tensors that this forward pass made on the device. A torch.nn.Parameter, which is
            another object than the tensor that it was made of, is found by it.

    Raises:
        Error: what was found, and what to do.
    """
    if getattr(func, "__name__", "") in _TAKE_BOTH:
        return
    tensors = tensors_in([args, kwargs])
    if len(tensors) < 2 or not any(is_on_device(tensor) for tensor in tensors):
        return
    for tensor in tensors:
        if not is_on_device(tensor) and not is_variable(tensor) and tensor.data_ptr() not in made:
            raise backend_error(
                f"Expected an IPU tensor but got tensor(device=cpu, shape={list(tensor.shape)}, "
                f"dtype={_SCALAR_TYPES.get(tensor.dtype, tensor.dtype)}).\nConstant tensors should be moved explicitly "
                'to the IPU, via cpu_tensor.to("ipu"). (Or make it a buffer of the module, and a layer one of its '
                "submodules.)"
            )


def on_this_machine(args: Sequence[Any]) -> Tuple[Any, ...]:
    """Positional "ipu" devices (tensor.to("ipu")) become the CPU that emulates them."""
    return tuple(torch.device("cpu") if _names_ipu(arg) else arg for arg in args)


def devices_on_this_machine(kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Do the same for device="ipu"."""
    if _names_ipu(kwargs.get("device")):
        return {**kwargs, "device": torch.device("cpu")}
    return kwargs


def _names_ipu(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "ipu"
    return isinstance(value, str) and (value == "ipu" or value.startswith("ipu:"))
