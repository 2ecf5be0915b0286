"""Half precision on the device: heavy operations compute in float32 and round their result.

The first operand (the activations) decides the type of the result: weights of another type follow it. Elsewhere mixed
operands become float, as in torch. torch's own half precision on the CPU is slow, and absent in older versions.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F

_HEAVY = {
    F: (
        "linear relu dropout "
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d bilinear layer_norm group_norm "
        "batch_norm instance_norm local_response_norm softmax log_softmax gelu silu mish softplus elu selu celu "
        "hardswish hardsigmoid hardtanh relu6 leaky_relu prelu logsigmoid scaled_dot_product_attention "
        "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d interpolate normalize cross_entropy nll_loss l1_loss mse_loss smooth_l1_loss kl_div "
        "binary_cross_entropy binary_cross_entropy_with_logits huber_loss"
    ),
    torch: (
        "matmul mm bmm mv dot addmm baddbmm addbmm einsum chain_matmul conv1d conv2d conv3d softmax log_softmax mean "
        "sum var std var_mean std_mean norm cumsum prod logsumexp exp log sqrt rsqrt pow tanh sigmoid erf layer_norm "
        "group_norm batch_norm instance_norm"
    ),
    torch.Tensor: (
        "matmul __matmul__ mm bmm mv dot addmm baddbmm softmax log_softmax mean sum var std norm cumsum prod logsumexp "
        "exp log sqrt rsqrt pow __pow__ tanh sigmoid erf"
    ),
}
VIA_FLOAT = {getattr(space, name) for space, names in _HEAVY.items() for name in names.split() if hasattr(space, name)}


def has_half(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether an operand is in half precision."""
    for arg in (*args, *kwargs.values()):
        for element in arg if isinstance(arg, (tuple, list)) else (arg,):
            if isinstance(element, torch.Tensor) and element.dtype == torch.float16:
                return True
    return False


def via_float(
    call: Callable[..., Any],
    args: Tuple[Any, ...],
    kwargs: Dict[str, Any],
    note_cast: Optional[Callable[[torch.Tensor, torch.Tensor], None]] = None,
) -> Any:
    """Call with half operands as float, and give the result the type of the first floating operand.

    note_cast receives each operand and its float copy.
    """
    target = _first_type((*args, *kwargs.values()))
    casts = {key: _as_float(value, note_cast) for key, value in kwargs.items()}
    result = call(*(_as_float(arg, note_cast) for arg in args), **casts)
    if "dtype" in kwargs and kwargs["dtype"] is not None:
        return result
    return _as_type(result, target, note_cast)


def _first_type(values: Tuple[Any, ...]) -> torch.dtype:
    for value in values:
        for element in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(element, torch.Tensor) and element.is_floating_point():
                return element.dtype
    return torch.float32


def _as_float(value: Any, note_cast: Optional[Callable[[torch.Tensor, torch.Tensor], None]]) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float16:
        cast = value.float()
        if note_cast is not None:
            note_cast(value, cast)
        return cast
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(_as_float(element, note_cast) for element in value)
    return value


def _as_type(result: Any, dtype: torch.dtype, note_cast: Optional[Callable[..., None]]) -> Any:
    if isinstance(result, torch.Tensor):
        cast = result.to(dtype) if result.is_floating_point() else result
        if note_cast is not None and cast is not result:
            note_cast(cast, result)
        return cast
    if isinstance(result, tuple):
        return tuple(_as_type(element, dtype, note_cast) for element in result)
    return result
