"""The arguments of a model call: bound to the names of forward(), and checked against those of the compilation."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch

from .._logging import logger
from ..errors import createPoptorchError
from ..structures import rebuilt, tensors_in

_Kind = inspect.Parameter


class BoundArguments:
    """Positional arguments with their names, and named ones."""

    def __init__(self, args: Sequence[Any], names: Sequence[str], kwargs: Dict[str, Any]) -> None:
        self.args = list(args)
        self.names = list(names)
        self.kwargs = dict(kwargs)

    def mapped(self, function: Callable[[torch.Tensor], Any]) -> BoundArguments:
        """Return the same arguments with `function` applied to every tensor in them."""
        structure = (self.args, self.kwargs)
        args, kwargs = rebuilt(structure, [function(tensor) for tensor in tensors_in(structure)])
        return BoundArguments(args, self.names, kwargs)

    def tensors(self, compiled: BoundArguments) -> List[torch.Tensor]:
        """Return all tensors, dictionaries in the order they had when the model was compiled."""
        return tensors_in(self.args, compiled.args) + tensors_in(self.kwargs, compiled.kwargs)

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Tuple[List[Any], Dict[str, Any]]:
        """Arguments and keywords for a call, with other tensors."""
        args, kwargs = rebuilt((self.args, self.kwargs), tensors)
        return args, kwargs


class ArgumentBinder:
    """Binds calls to the signature of a model's forward()."""

    def __init__(self, model: Any) -> None:
        if not callable(model):
            raise TypeError(f"Expected a torch.nn.Module or a callable, got {type(model)}")
        try:
            signature = inspect.signature(model.forward if isinstance(model, torch.nn.Module) else model)
        except ValueError:  # functions that are not written in Python may have none
            signature = inspect.signature(_any_call)
        self._parameters = list(signature.parameters.values())
        self._is_variadic = any(p.kind in (_Kind.VAR_POSITIONAL, _Kind.VAR_KEYWORD) for p in self._parameters)
        self._warned_of_strides = False

    def bind(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> BoundArguments:
        """Put the arguments in the order of the signature, defaults included.

        Raises:
            AssertionError: too many arguments, unknown or repeated names.
            Error: a parameter without default is missing.
        """
        self._check_names(args, kwargs)
        bound = BoundArguments([], [], {})
        after_variadic = False
        for index, parameter in enumerate(self._parameters):
            name = parameter.name
            if parameter.kind == _Kind.VAR_KEYWORD:
                named = {p.name for p in self._parameters[:index]}
                bound.kwargs.update({key: value for key, value in kwargs.items() if key not in named})
            elif parameter.kind == _Kind.VAR_POSITIONAL:
                bound.args += args[index:]
                bound.names += [f"*{name}[{position}]" for position in range(len(args[index:]))]
                after_variadic = True
            elif index < len(args) and not after_variadic:
                if name in kwargs:
                    raise AssertionError(f"Parameter {name} was passed more than once")
                bound.args.append(args[index])
                bound.names.append(name)
            else:
                if name not in kwargs and parameter.default is _Kind.empty:
                    raise createPoptorchError(f"Mandatory parameter {name} missing")
                value = kwargs.get(name, parameter.default)
                if after_variadic or parameter.kind == _Kind.KEYWORD_ONLY:
                    bound.kwargs[name] = value
                else:
                    bound.args.append(value)
                    bound.names.append(name)
        return bound.mapped(self._contiguous)

    def _check_names(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> None:
        if self._is_variadic:
            return
        names = [parameter.name for parameter in self._parameters]
        if len(args) + len(kwargs) > len(names):
            raise AssertionError(
                f"Too many arguments provided: expected {names} ({len(names)}) but got {len(args) + len(kwargs)}"
            )
        unknown = [key for key in kwargs if key not in names]
        if unknown:
            raise AssertionError(f"{unknown[0]} is not a valid parameter. Allowed values are {names}")

    def _contiguous(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_contiguous():
            return tensor
        if not self._warned_of_strides:
            self._warned_of_strides = True
            logger.warning("At least one input tensor is not contiguous: non-contiguous tensors will be converted.")
        return tensor.contiguous()


def _any_call(*args: Any, **kwargs: Any) -> None:
    """Take everything: the signature where there is none."""


def check_same_form(compiled: BoundArguments, given: BoundArguments) -> None:
    """Check the arguments of a call against those the model was compiled for.

    Raises:
        Error: another number or other names of arguments, another type, dtype or shape, or another value of something
            that is not a tensor.
    """
    if len(given.args) != len(compiled.args):
        raise _mismatch("Number of positional arguments", "", f"{len(compiled.args)} arguments", str(len(given.args)))
    for name, expected, value in zip(compiled.names, compiled.args, given.args):
        _check(name, expected, value)
    _check_keys("named arguments", compiled.kwargs, given.kwargs)
    for name, expected in compiled.kwargs.items():
        _check(name, expected, given.kwargs[name])


def _check(name: str, expected: Any, value: Any) -> None:
    if type(expected) is not type(value):
        raise _mismatch("Type", name, type(expected), type(value))
    if isinstance(expected, torch.Tensor):
        if expected.dtype != value.dtype:
            raise _mismatch("Data type", name, expected.dtype, value.dtype)
        if expected.shape != value.shape:
            raise _mismatch("Shape", name, expected.shape, value.shape)
    elif isinstance(expected, dict):
        _check_keys(name, expected, value)
        for key in expected:
            _check(f"{name}[{key}]", expected[key], value[key])
    elif isinstance(expected, tuple):
        if len(expected) != len(value):
            raise _mismatch("Length", name, f"{len(expected)} elements", len(value))
        for index, element in enumerate(expected):
            _check(f"{name}[{index}]", element, value[index])
    else:
        tensors = tensors_in(expected)
        if tensors:
            _check(name, tuple(tensors), tuple(tensors_in(value)))
        elif expected != value:
            raise _mismatch("Value", name, expected, value)


def _check_keys(name: str, expected: Dict[str, Any], value: Dict[str, Any]) -> None:
    found = []
    for what, keys in (("Unexpected", set(value) - set(expected)), ("Missing", set(expected) - set(value))):
        if keys:
            found.append(f"{what} arguments: {', '.join(sorted(map(str, keys)))}")
    if found:
        raise createPoptorchError(f"Keys mismatch for {name}: {'. '.join(found)}.{_ADVICE}")


_ADVICE = (
    "\nA compiled model takes inputs of one form: for another one, make a new inferenceModel / trainingModel, "
    "or call destroy() on this one and call it again."
)


def _mismatch(what: str, name: str, expected: Any, got: Any) -> Exception:
    where = f" for {name}" if name else ""
    return createPoptorchError(f"{what} mismatch{where}: expected {expected} but got {got}.{_ADVICE}")
