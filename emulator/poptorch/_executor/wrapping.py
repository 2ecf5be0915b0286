"""What a training executor puts around the user's model: every touch of its weights fetches them from the device.

The classes of the module, its parameters and its buffers are exchanged for subclasses that ask the executor to copy
the weights back, if they are out of date, before they answer. Pickling and copying restore the plain classes.
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from typing import Any, Callable, Dict, Tuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import createPoptorchError

wrapped_models: Any = weakref.WeakSet()  # wrapped once; whether they still are is_wrapped() tells
_set_aside_classes: Any = WeakIdKeyDictionary()  # module or tensor -> its wrapping class


class Wrapped:
    """Mark of the subclasses made here."""


def is_wrapped(value: Any) -> bool:
    """Whether this module, parameter or buffer belongs to a live training executor."""
    return issubclass(type(value), Wrapped)


def unwrap(value: Any) -> None:
    """Give the plain class back to a wrapped module or tensor."""
    if is_wrapped(value):
        object.__setattr__(value, "__class__", type(value).__bases__[1])


def unwrap_model(model: torch.nn.Module) -> None:
    """Unwrap the model with its parameters and buffers."""
    unwrap(model)
    for tensor in _tensors_of(model):
        unwrap(tensor)


def set_aside_model(model: torch.nn.Module) -> None:
    """Take the wrapping off a model until restore_model(): so long nothing fetches its weights."""
    _set_aside(model)
    for tensor in list(_tensors_of(model)):
        _set_aside(tensor)


def restore_model(model: torch.nn.Module) -> None:
    """Undo set_aside_model()."""
    for tensor in list(_tensors_of(model)):
        restore(tensor)
    restore(model)


def restore(obj: Any) -> Any:
    """Give a module or tensor back the wrapping that was set aside, if any; return it."""
    wrapper = _set_aside_classes.get(obj)
    if wrapper is not None:
        obj.__class__ = wrapper
    return obj


def _set_aside(value: Any) -> None:
    if is_wrapped(value):
        wrapper = type(value)
        unwrap(value)
        _set_aside_classes[value] = wrapper


def wrap_model(model: torch.nn.Module, executor: Any) -> None:
    """Wrap the model, its parameters and buffers; the executor is held by a weak reference.

    Raises:
        Error: a buffer that is not a plain tensor.
    """
    wrapped_models.add(model)
    parent = weakref.ref(executor)
    parameter_class = _parameter_class(parent)
    buffer_class = _buffer_class(parent)
    for module in model.modules():
        for buffer in module.__dict__["_buffers"].values():
            if buffer is not None and type(buffer) is not torch.Tensor:
                raise createPoptorchError(f"All buffers must be an instance of torch.Tensor (Got {type(buffer)})")
    for tensor in _tensors_of(model):
        tensor.__class__ = parameter_class if isinstance(tensor, torch.nn.Parameter) else buffer_class
    model.__class__ = _model_class(type(model), parent)


def copy_for_execution(model: Any, keep_wrapping: bool = False) -> Any:
    """Return the module that an executor runs: its own attributes and training flag, the same submodules and tensors.

    With keep_wrapping the copy of a model that is being trained still fetches the newest weights.
    """
    duplicate = copy.copy(model)
    if keep_wrapping and is_wrapped(model):
        object.__setattr__(duplicate, "__class__", type(model))
    return duplicate


def _tensors_of(model: torch.nn.Module) -> Any:
    for module in model.modules():
        for kind in ("_parameters", "_buffers"):
            for tensor in module.__dict__[kind].values():
                if tensor is not None:
                    yield tensor


def _fetch(parent: Callable[[], Any]) -> bool:
    executor = parent()
    return bool(executor is not None and executor.copyWeightsToHostIfNeeded())


def _model_class(plain: type, parent: Callable[[], Any]) -> type:
    class PoptorchModel(Wrapped, plain):
        """The user's model while a training executor holds it."""

        def copyWeightsToHostIfNeeded(self) -> bool:
            """Fetch the weights if they are out of date; True if they were."""
            return _fetch(parent)

        def destroy(self) -> None:
            """Destroy the executor, which unwraps this model."""
            executor = parent()
            if executor is not None:
                executor.destroy()

        def __getattribute__(self, name: str) -> Any:
            if name == "_host_weights_version":
                executor = parent()
                return None if executor is None else executor._host_weights_version
            if name in ("_buffers", "_parameters", "forward"):
                _fetch(parent)
            return object.__getattribute__(self, name)

        def state_dict(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
            """Return the state with plain tensors, so that it can be loaded where there is no PopTorch."""
            _fetch(parent)
            state = super().state_dict(*args, **kwargs)
            plain_of = {id(value): _plain(value) for value in state.values()}  # tied weights stay tied
            return OrderedDict((key, plain_of[id(value)]) for key, value in state.items())

        def __reduce_ex__(self, protocol: Any) -> Any:
            _fetch(parent)
            has_state_method = hasattr(plain, "__getstate__")
            return plain.__new__, (plain,), self.__getstate__() if has_state_method else self.__dict__.copy()

    PoptorchModel.__name__ = f"Poptorch{plain.__name__}"
    return PoptorchModel


def _plain(value: Any) -> Any:
    """Return a tensor of the plain class that shares the memory of a wrapped one; anything else as it is."""
    if not is_wrapped(value):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        data = value.detach()
        return torch.nn.Parameter(data, value.requires_grad) if isinstance(value, torch.nn.Parameter) else data


class _WrappedTensor(Wrapped):
    """What wrapped parameters and buffers share: copies and pickles are plain."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self).__reduce_ex__(protocol)

    def __copy__(self) -> Any:
        return _plain(self)

    def __deepcopy__(self, memo: Dict[int, Any]) -> Any:
        duplicate = memo[id(self)] = copy.deepcopy(_plain(self))
        return duplicate


def _parameter_class(parent: Callable[[], Any]) -> type:
    class PoptorchParameter(_WrappedTensor, torch.nn.Parameter):
        """A parameter of the user's model while a training executor holds it."""

    return _fetching(PoptorchParameter, parent)


def _buffer_class(parent: Callable[[], Any]) -> type:
    class PoptorchBuffer(_WrappedTensor, torch.Tensor):
        """A buffer of the user's model while a training executor holds it."""

    return _fetching(PoptorchBuffer, parent)


def _fetching(kind: Any, parent: Callable[[], Any]) -> type:
    """Make each use of a tensor of this class fetch the weights first."""

    def get(self: Any, name: str) -> Any:
        _fetch(parent)
        return object.__getattribute__(self, name)

    def apply(cls: Any, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        _fetch(parent)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    kind.__getattribute__, kind.__torch_function__ = get, classmethod(apply)
    return kind
