"""What the device's compiler answers to operators that it has a handler for, but not with these arguments.

The rules are those of PopTorch's handlers (poptorch/source/popart_canonicalization of release 3.4.0), and of the
operators of PopART that they come down to (willow/src/op).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch

from ..errors import Error, backend_error, popart_error
from .marks import is_variable

Given = Dict[str, Any]  # the arguments of an operator by name, defaults included


def error_of_arguments(
    name: str, schema: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], is_training: bool
) -> Optional[Error]:
    """Return what the compiler raises for a call of the operator of this plain name; None: it compiles.

    Args:
        name: as in the table of operators.
        schema: torch's, which says what the arguments are called.
        args: by position; torch leaves out those that have their defaults.
        kwargs: by name.
        is_training: whether gradients will be computed.
    """
    rule = _RULES.get(name)
    if rule is None:
        return None
    given = {argument.name: argument.default_value for argument in schema.arguments}
    given.update(zip(given, args))
    given.update(kwargs)
    return rule(name, given, is_training)


Rule = Callable[[str, Given, bool], Optional[Error]]


def _never(message: str) -> Rule:
    return lambda name, given, is_training: backend_error(message.format(name=name))


def _when(is_refused: Callable[[Given], bool], message: str) -> Rule:
    def rule(name: str, given: Given, is_training: bool) -> Optional[Error]:
        return backend_error(message) if is_refused(given) else None

    return rule


def _convolution(name: str, given: Given, is_training: bool) -> Optional[Error]:
    if given["transposed"] and any(step != 1 for step in given["dilation"]):
        return popart_error("Non default value for dilations is not supported.")
    return None


def _max_pool(name: str, given: Given, is_training: bool) -> Optional[Error]:
    dilation = list(given["dilation"])
    if any(step != 1 for step in dilation):
        return popart_error(
            f"MaxPool has dilations {dilation}. Dilations of value other than 1 are currently not supported."
        )
    return None


def _adaptive_pool(name: str, given: Given, is_training: bool) -> Optional[Error]:
    wanted: Sequence[int] = given["output_size"]
    for index, (size, parts) in enumerate(zip(given["self"].shape[-len(wanted) :], wanted)):
        if size % parts:
            return backend_error(
                f"Input dim {index} ({size}) is not divisible by the corresponding output dim ({parts}). The results "
                "will differ numerically from PyTorch's implementation."
            )
    return None


def _padding_by_values(name: str, given: Given, is_training: bool) -> Optional[Error]:
    if is_training and given["self"].requires_grad:
        return popart_error('At this time, PopART does not support PadGradOp when mode is not "constant".')
    return None


def _embedding_bag(name: str, given: Given, is_training: bool) -> Optional[Error]:
    unsupported = "Unsupported aten::embedding_bag operation"
    if given["scale_grad_by_freq"] or given["sparse"]:
        return backend_error(unsupported)
    if given["padding_idx"] is not None and given["padding_idx"] >= 0:
        return backend_error(f"{unsupported}: padding_idx parameter is unsupported.")
    if is_variable(given["offsets"]):
        return backend_error(f"{unsupported}: offsets tensor must be a constant.")
    return None


def _bitwise(title: str) -> Rule:
    def rule(name: str, given: Given, is_training: bool) -> Optional[Error]:
        types = {value.dtype if isinstance(value, torch.Tensor) else None for value in given.values()}
        if types in ({torch.uint8}, {torch.int8}):
            return backend_error(f"{title}: Poplar does not support binary operations on 8-bit integral types.")
        return None

    return rule


def _cross(name: str, given: Given, is_training: bool) -> Optional[Error]:
    shapes = given["self"].shape, given["other"].shape
    if len(shapes[0]) != len(shapes[1]):
        return backend_error("Cross product tensors must have same rank")
    return None if shapes[0] == shapes[1] else backend_error("Cross product tensors must have same shape")


def _bilinear_upsampling(name: str, given: Given, is_training: bool) -> Optional[Error]:
    """Return an error unless both dimensions grow by one factor, whole where the program gives a factor."""
    height, width = given["scales_h"], given["scales_w"]
    if height is None or width is None:
        height, width = (wanted / size for wanted, size in zip(given["output_size"], given["self"].shape[2:]))
    elif height == width and height != int(height):
        return backend_error("Bilinear upsampling with non-integer factor not supported")
    return None if height == width else backend_error("Non-uniform bilinear upsampling not supported")


_UPSAMPLING = _never("Unsupported upsample mode aten::{name}: currently only 'nearest' is supported")
NOT_INTERCEPTED = "InternalError: aten::as_strided should have been intercepted earlier."
_RULES: Dict[str, Rule] = {
    "convolution": _convolution,
    "upsample_linear1d": _UPSAMPLING,
    "upsample_trilinear3d": _UPSAMPLING,
    "upsample_bilinear2d": _bilinear_upsampling,
    "upsample_bicubic2d": _when(lambda given: given["align_corners"], "Only support align_corners=False."),
    "triu": _never("torch.triu is only supported within constant expressions, for example torch.ones(3, 3).triu_()."),
    "embedding": _when(
        lambda given: given["scale_grad_by_freq"] or given["sparse"], "Unsupported aten::embedding operation"
    ),
    "linalg_cross": _cross,
    "im2col": _when(lambda given: given["self"].dim() != 4, "data_shape.size() != 4"),
    **{name: _max_pool for name in ("max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices")},
    **{f"_adaptive_avg_pool{n}d": _adaptive_pool for n in (2, 3)},
    **{f"reflection_pad{n}d": _padding_by_values for n in (1, 2)},
    **{f"replication_pad{n}d": _padding_by_values for n in (1, 2, 3)},
    **{name: _embedding_bag for name in ("_embedding_bag", "_embedding_bag_forward_only")},
    **{name: _bitwise("Bitwise-and") for name in ("bitwise_and", "__and__")},
    **{name: _bitwise("Bitwise-or") for name in ("bitwise_or", "__or__")},
    **{name: _bitwise("Bitwise-xor") for name in ("bitwise_xor", "__xor__")},
    "bitwise_not": _bitwise("Bitwise-not"),
    # torch takes these apart into as_strided. (On a CPU other operators come down to that too.)
    **{name: _never(NOT_INTERCEPTED) for name in ("diagonal", "diagonal_copy", "diagonal_scatter", "diag_embed")},
    **{name: _never(NOT_INTERCEPTED) for name in ("as_strided_copy", "as_strided_scatter")},
}
