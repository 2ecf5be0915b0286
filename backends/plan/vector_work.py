"""The small operations of a pipeline stage: those on vectors of channels, whose cost does not depend on the images."""

from __future__ import annotations

import copy
from typing import Any, List, NamedTuple, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from normact import NormAct
from normact.joint_statistics import JointProxyStatistics


class VectorWork(NamedTuple):
    """Operations on vectors of one micro-batch; the device recomputes the forward ones where it recomputes.

    Args:
        forward: operations.
        backward: operations.
        forward_elements: that these read and write.
        backward_elements: the same backward.
    """

    forward: int
    backward: int
    forward_elements: int
    backward_elements: int


def proxy_work(layers: Sequence[NormAct]) -> VectorWork:
    """What Proxy Normalization adds in operations on vectors to the layers of one stage, as the IPU backend runs them.

    Counted by running them on the meta device, below autograd. A layer's part is a slice, which costs nothing forward;
    backward, PopART pads its gradient to the length of the whole vector, which is counted here as an operation of
    that length beside torch's own one for all slices. Where a parameter is used by the norm's affine too, the sum of
    both gradients is another.
    """
    twins = [copy.deepcopy(layer).to("meta") for layer in layers if layer.proxy is not None]
    if not twins:
        return VectorWork(0, 0, 0, 0)
    with _Counter() as forward:
        JointProxyStatistics(twins).hand_out()
    outputs = [part for twin in twins for part in twin.handed_affine or ()]
    used_twice = [value for twin in twins for value in (twin.weight, twin.bias) if value is not None]
    parameters = [value for twin in twins for value in twin.parameters() if value.requires_grad]
    gradients = [torch.empty_like(part) for part in outputs]
    with _Counter() as backward:
        torch.autograd.grad(outputs, parameters, gradients)
    pads = sum(part.numel() + part.untyped_storage().nbytes() // part.element_size() for part in outputs)
    return VectorWork(
        forward=forward.operations,
        backward=backward.operations + len(outputs) + len(used_twice),
        forward_elements=forward.elements,
        backward_elements=backward.elements + pads + 3 * sum(value.numel() for value in used_twice),
    )


class _Counter(TorchDispatchMode):
    """Counts operations that compute something: all but views and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = (_tensors(value) for value in ((args, kwargs), result))
        storages = {value.untyped_storage()._cdata for value in given}
        is_new = func._schema.is_mutable or any(value.untyped_storage()._cdata not in storages for value in made)
        if is_new and any(value.numel() > 1 for value in made):  # what has one element here is a constant
            self.operations += 1
            self.elements += sum(value.numel() for value in given + made)
        return result


def _tensors(value: Any) -> List[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, torch.Tensor)]
