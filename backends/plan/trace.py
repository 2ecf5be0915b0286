"""What one forward pass of a network does: its operations and tensors, in the order of execution.

The pass runs on a copy on the meta device, so it costs no memory and computes nothing. It runs twice, on 2 and on 4
images: what grows is counted per image, the rest (standardized weights, the proxy's statistics) as fixed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, List, Tuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from normact import NormAct

_IMAGES = (2, 4)  # one image would leave batch norm a single value per channel where the map is 1x1
_PRODUCTS = {"convolution": 1, "mm": 1, "addmm": 2, "bmm": 1}  # position of the weight among the arguments
_ALLOCATIONS = ("empty", "empty_like")
_GROUPS = 8  # position of the number of groups among a convolution's arguments
INPUT = -1  # index of the operation that made the network's input


@dataclass(frozen=True)
class Size:
    """Elements: per_image x images + fixed."""

    per_image: int = 0
    fixed: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.per_image + other.per_image, self.fixed + other.fixed)

    def elements(self, images: int) -> int:
        return self.per_image * images + self.fixed


@dataclass(frozen=True)
class TensorUse:
    """One block of storage, parameters and buffers apart.

    Args:
        size: elements.
        made_by: index of the operation that wrote it first, or INPUT.
        read_until: index of the last operation that reads it in the forward pass.
        saved_by: indices of the operations that keep it for the backward pass.
    """

    size: Size
    made_by: int
    read_until: int
    saved_by: Tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One operation of the forward pass that computes something (views are left out).

    Args:
        path: module path of the module that ran it.
        name: torch's name, e.g. "convolution".
        multiply_adds: for one image; 0 for all but convolutions and matrix products.
        summed: values that can be summed side by side for one output: the input channels of a group, or in a
            convolution without groups the channels under the whole kernel; 0 where nothing is summed.
        moved: elements read and written.
        weights: elements of the parameters that it reads.
    """

    path: str
    name: str
    multiply_adds: int
    summed: int
    moved: Size
    weights: int

    @property
    def is_product(self) -> bool:
        return self.summed > 0

    @property
    def is_small(self) -> bool:
        """Whether it computes on something that does not grow with the batch, such as a value for each channel."""
        return not self.is_product and self.moved.per_image == 0 and self.name not in _ALLOCATIONS


@dataclass(frozen=True)
class Trace:
    """A network's forward pass.

    Args:
        operations: in the order of execution.
        tensors: all that operations wrote, and the input first.
        begins: module path -> index of its first operation.
        outputs: module path -> the tensor (index) that the module returned.
        proxies: paths of the modules with Proxy Normalization.
        parameters: module path of the owner -> (index of the first operation inside it, sizes of its own parameters).
    """

    operations: Tuple[Operation, ...]
    tensors: Tuple[TensorUse, ...]
    begins: Dict[str, int]
    outputs: Dict[str, int]
    parameters: Dict[str, Tuple[int, Tuple[int, ...]]]
    proxies: FrozenSet[str]

    @property
    def multiply_adds(self) -> int:
        """Of one image, forward."""
        return sum(operation.multiply_adds for operation in self.operations)

    @property
    def num_parameters(self) -> int:
        return sum(sum(sizes) for _, sizes in self.parameters.values())


def trace_network(network: nn.Module, image_size: int, in_channels: int = 3) -> Trace:
    """Return the operations of a training step's forward pass on square images.

    Args:
        network: any module from images to logits; it stays untouched.
        image_size: side of the images in pixels.
        in_channels: channels of the images.
    """
    network = copy.deepcopy(network).to("meta").train()
    for module in network.modules():
        # Ghost batches: the number of operations would depend on the number of images. The tensors are the same.
        if getattr(module, "norm_batch_size", None) is not None:
            module.norm_batch_size = None  # type: ignore[assignment]
    few, many = (_Recorder(network).run(images, image_size, in_channels) for images in _IMAGES)
    return _join(few, many)


class _Recorder(TorchDispatchMode):
    """Records every operation below autograd, the module it belongs to, and what autograd saves."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.operations: List[Dict[str, Any]] = []
        self.tensors: List[Dict[str, Any]] = []
        self.begins: Dict[str, int] = {}
        self.outputs: Dict[str, int] = {}
        self._path: List[str] = [""]
        self._index: Dict[int, int] = {}  # storage -> place in self.tensors
        self._alive: List[torch.Tensor] = []  # keeps every storage alive, so that no address is used twice
        self._pending: List[int] = []  # saved since the last operation
        own = list(network.parameters()) + list(network.buffers())
        self._own: FrozenSet[int] = frozenset(_storage(tensor) for tensor in own)

    def run(self, images: int, image_size: int, in_channels: int) -> _Recorder:
        x = torch.zeros(images, in_channels, image_size, image_size, device="meta")
        self._note(x)
        hooks = []
        for path, module in self.network.named_modules():
            hooks.append(module.register_forward_pre_hook(self._enter(path)))
            hooks.append(module.register_forward_hook(self._leave(path)))
        try:
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(self._save, _unchanged), self:
                self.network(x)
        finally:
            for hook in hooks:
                hook.remove()
        self._settle(frozenset())
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        outputs = [value for value in tree_flatten(result)[0] if isinstance(value, torch.Tensor)]
        given = {_storage(value) for value in inputs}
        written = [value for value in outputs if func._schema.is_mutable or _storage(value) not in given]
        if written:  # otherwise a view: nothing is computed
            self._record(func, args, inputs, written)
        return result

    def _record(self, func: Any, args: Any, inputs: List[torch.Tensor], written: List[torch.Tensor]) -> None:
        name = func.overloadpacket.__name__
        reads = [self._note(value) for value in inputs if _storage(value) not in self._own]
        self._settle(frozenset(reads))
        here = len(self.operations)
        operation = {
            "path": self._path[-1],
            "name": name,
            "products": 0,
            "summed": 0,
            "moved": sum(value.numel() for value in inputs + written if _storage(value) not in self._own),
            "weights": sum(value.numel() for value in inputs if _storage(value) in self._own),
        }
        if name in _PRODUCTS:
            weight = args[_PRODUCTS[name]]
            each = weight[0].numel() if name == "convolution" else weight.shape[-2]
            operation["products"] = written[0].numel() * each
            in_groups = name == "convolution" and args[_GROUPS] > 1
            operation["summed"] = weight.shape[1] if in_groups else each
        self.operations.append(operation)
        for index in reads:
            self.tensors[index]["read_until"] = here
        for value in written:
            if _storage(value) not in self._own:
                self._note(value)

    def _note(self, value: torch.Tensor) -> int:
        """Return the place of a tensor's storage in the list; new ones are made by the operation being recorded."""
        key = _storage(value)
        if key not in self._index:
            self._index[key] = len(self.tensors)
            self._alive.append(value)
            made_by = len(self.operations) - 1
            self.tensors.append({"elements": value.numel(), "made_by": made_by, "read_until": made_by, "saved_by": []})
        return self._index[key]

    def _save(self, value: torch.Tensor) -> torch.Tensor:
        if _storage(value) not in self._own:
            self._pending.append(self._note(value))
        return value

    def _settle(self, reads: FrozenSet[int]) -> None:
        """Tell saved inputs from saved outputs by what the operation reads: inputs are saved before it runs."""
        here = len(self.operations)
        for index in self._pending:
            saver = here if index in reads else max(here - 1, 0)
            if saver not in self.tensors[index]["saved_by"]:
                self.tensors[index]["saved_by"].append(saver)
        self._pending.clear()

    def _enter(self, path: str) -> Any:
        def enter(module: nn.Module, inputs: Any) -> None:
            self._path.append(path)
            self.begins.setdefault(path, len(self.operations))

        return enter

    def _leave(self, path: str) -> Any:
        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self._path.pop()
            if isinstance(output, torch.Tensor):
                self.outputs[path] = self._note(output)

        return leave


def _join(few: _Recorder, many: _Recorder) -> Trace:
    if [each["name"] for each in few.operations] != [each["name"] for each in many.operations]:
        raise ValueError(
            f"the network runs {len(few.operations)} operations on {_IMAGES[0]} images and {len(many.operations)} on "
            f"{_IMAGES[1]}; the planner needs a network whose operations do not depend on the number of images"
        )
    operations = tuple(
        Operation(
            path=a["path"],
            name=a["name"],
            multiply_adds=_size(a["products"], b["products"]).per_image,
            summed=a["summed"],
            moved=_size(a["moved"], b["moved"]),
            weights=a["weights"],
        )
        for a, b in zip(few.operations, many.operations)
    )
    tensors = tuple(
        TensorUse(_size(a["elements"], b["elements"]), a["made_by"], a["read_until"], tuple(a["saved_by"]))
        for a, b in zip(few.tensors, many.tensors)
    )
    parameters = {
        path: (few.begins[path], sizes)
        for path, module in few.network.named_modules()
        for sizes in [tuple(parameter.numel() for parameter in module.parameters(recurse=False))]
        if sizes and path in few.begins
    }
    modules = few.network.named_modules()
    proxies = frozenset(path for path, module in modules if isinstance(module, NormAct) and module.proxy is not None)
    return Trace(operations, tensors, few.begins, few.outputs, parameters, proxies)


def _size(few: int, many: int) -> Size:
    per_image = (many - few) // (_IMAGES[1] - _IMAGES[0])
    return Size(per_image, few - _IMAGES[0] * per_image)


def _storage(tensor: torch.Tensor) -> int:
    # The data pointer would not do: it is 0 for every tensor on the meta device.
    return tensor.untyped_storage()._cdata


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
