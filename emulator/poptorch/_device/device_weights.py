"""The device's own copies of a model's parameters and buffers, and their exchange with the host's."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch

from ..enums import CommGroupType
from ..errors import createPoptorchError
from .graph_gradients import without_backward_hooks
from .marks import mark_on_device, mark_variable

ReplicaGrouping = Tuple[CommGroupType, int, Any]


class Slot(NamedTuple):
    """One place in one module that holds a tensor."""

    owner: Dict[str, Any]  # the module's _parameters or _buffers
    key: str
    name: str  # full name in the model
    is_free: bool  # a module of torch's batch norms: its buffers may be replaced


class DeviceTensor:
    """A parameter or buffer: one value, or one for each group of replicas.

    Args:
        slots: all places of the model that share it.
        group_of: the index of the value that each replica uses.
        is_split: the host's tensor has a first dimension that runs over the groups.
    """

    def __init__(self, slots: List[Slot], group_of: List[int], is_split: bool) -> None:
        self.slots = slots
        self.group_of = group_of
        self.is_split = is_split
        self.values: List[torch.Tensor] = []

    @property
    def name(self) -> str:
        """Its first name in the model."""
        return self.slots[0].name

    @property
    def host(self) -> torch.Tensor:
        """The host's tensor, as the model holds it now."""
        return self.slots[0].owner[self.slots[0].key]

    def load(self) -> None:
        """Copy the host's value to the device."""
        with torch.no_grad(), torch._C.DisableTorchFunction():
            host = self.host
            groups = max(self.group_of) + 1
            sources = [host[group] if self.is_split else host for group in range(groups)]
            if not self.values:
                self.values = [_new_like(host, source) for source in sources]
            for value, source in zip(self.values, sources):
                value.copy_(source)

    def store(self) -> None:
        """Copy the device's value (of replica 0, where replicas differ) to the host."""
        with torch.no_grad(), torch._C.DisableTorchFunction():
            source = torch.stack(self.values) if self.is_split else self.values[0]
            host = self.host
            with torch.inference_mode(host.is_inference()):  # a tensor made in that mode changes in it alone
                host.detach().copy_(source)


def _new_like(host: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    value = torch.empty_like(source)
    if isinstance(host, torch.nn.Parameter):
        value = torch.nn.Parameter(value, requires_grad=host.requires_grad)
    if value.is_floating_point():  # whole numbers become constants of the graph
        mark_variable(value)
    return mark_on_device(value)


class DeviceWeights:
    """All parameters and buffers of a model on the emulated device.

    Args:
        model: the module that runs; its tensors are exchanged for the device's while it does.
        replicas: how many replicas this process runs.
        groupings: parameters of which replicas have their own values.
    """

    def __init__(self, model: torch.nn.Module, replicas: int, groupings: Dict[str, ReplicaGrouping]) -> None:
        self._modules = [(module, module.training) for module in model.modules()]
        self.parameters: List[DeviceTensor] = []
        self.buffers: List[DeviceTensor] = []
        for tensors, kind in ((self.parameters, "_parameters"), (self.buffers, "_buffers")):
            shared: Dict[int, List[Slot]] = {}
            for slot in _slots(model, kind):
                shared.setdefault(id(slot.owner[slot.key]), []).append(slot)
            for slots in shared.values():
                grouping = groupings.get(slots[0].name)
                is_buffer = kind == "_buffers"
                group_of = list(range(replicas)) if is_buffer else _groups(grouping, replicas, slots[0])
                tensors.append(DeviceTensor(slots, group_of, is_split=grouping is not None))

    def load(self) -> None:
        """Copy all host values to the device."""
        for tensor in self.parameters + self.buffers:
            tensor.load()

    def store(self) -> None:
        """Copy all device values to the host."""
        for tensor in self.parameters + self.buffers:
            tensor.store()

    @contextlib.contextmanager
    def in_place(self, replica: int) -> Iterator[None]:
        """While entered, the model holds the device's tensors and the training flags of the compilation.

        Raises:
            Error: on leaving, if the model removed or replaced a parameter or buffer.
        """
        host: List[Tuple[Slot, Any, torch.Tensor, str]] = []
        for kind, tensors in (("Parameter", self.parameters), ("Buffer", self.buffers)):
            for tensor in tensors:
                value = tensor.values[tensor.group_of[replica]]
                for slot in tensor.slots:
                    host.append((slot, slot.owner[slot.key], value, kind))
                    slot.owner[slot.key] = value
        changed = [module for module, training in self._modules if module.training != training]
        _flip_training(changed)
        problem: Optional[str] = None
        try:
            with without_backward_hooks([module for module, _ in self._modules]):
                yield
        finally:
            for slot, original, value, kind in host:
                problem = problem or _change(slot, value, kind)
                if kind == "Buffer" and value.requires_grad:
                    value.detach_()  # no gradient reaches back into an earlier micro step
                slot.owner[slot.key] = original
            _flip_training(changed)
        if problem is not None:
            raise createPoptorchError(problem)


def _flip_training(modules: List[torch.nn.Module]) -> None:
    for module in modules:
        module.__dict__["training"] = not module.training


def _slots(model: torch.nn.Module, kind: str) -> Iterator[Slot]:
    for prefix, module in model.named_modules():
        owner = module.__dict__[kind]
        is_free = kind == "_buffers" and isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for key, tensor in owner.items():
            if tensor is not None:
                yield Slot(owner, key, f"{prefix}.{key}" if prefix else key, is_free)


def _change(slot: Slot, value: torch.Tensor, kind: str) -> Optional[str]:
    """Return what forward() did to a slot that it may not do, in words."""
    if slot.is_free or slot.owner.get(slot.key) is value:
        return None
    if slot.key not in slot.owner:
        return f"{kind} {slot.name} is removed from the model when calling the forward method."
    return (
        f"{kind} {slot.name} is reassigned within the model when calling the forward method. This is not supported. "
        f"Consider using self.{slot.name}.copy_(src) to copy data from a source tensor, "
        "where src is the name of the source tensor."
    )


def _groups(grouping: Optional[ReplicaGrouping], replicas: int, slot: Slot) -> List[int]:
    """For each replica, the index of the value it uses."""
    if grouping is None:
        return [0] * replicas
    kind, size = grouping[0], grouping[1]
    if slot.owner[slot.key].dim() == 0:
        raise createPoptorchError("Scalars cannot be passed as per-replica weight tensor values")
    if kind == CommGroupType.All:
        return [0] * replicas
    if kind == CommGroupType.NoGrouping:
        return list(range(replicas))
    count = replicas // size
    if kind == CommGroupType.Consecutive:
        return [replica // size for replica in range(replicas)]
    return [replica % count for replica in range(replicas)]
