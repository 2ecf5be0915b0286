"""Nested containers of tensors: taking the tensors out, and putting others back in the same places."""

from __future__ import annotations

import abc
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Type

import torch

from .errors import createPoptorchError


class ICustomArgParser(abc.ABC):
    """Teaches the executor and the data loader a container type of the program's own."""

    @abc.abstractmethod
    def yieldTensors(self, struct: Any) -> Any:
        """Yield the tensors of `struct`, always in the same order."""

    @abc.abstractmethod
    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[Any]) -> Any:
        """Build a container like `original_structure` from tensors in the order of yieldTensors."""


_parsers: Dict[type, ICustomArgParser] = {}


def registerCustomArgParser(arg_data_type: Type[Any], arg_parser: Optional[ICustomArgParser]) -> None:
    """Use `arg_parser` for arguments of `arg_data_type`; None removes the parser.

    Raises:
        Error: arg_parser is not an ICustomArgParser.
    """
    if arg_parser is None:
        _parsers.pop(arg_data_type, None)
    elif not isinstance(arg_parser, ICustomArgParser):
        raise createPoptorchError(f"arg_parser must inherit from ICustomArgParser, got {type(arg_parser)}")
    else:
        _parsers[arg_data_type] = arg_parser


def custom_parser(value: Any) -> Optional[ICustomArgParser]:
    """Return the parser registered for the type of `value` or one of its bases; None if there is none."""
    exact = _parsers.get(type(value))
    if exact is not None or not _parsers:
        return exact
    return next((parser for kind, parser in _parsers.items() if isinstance(value, kind)), None)


def tensors_in(structure: Any, like: Any = None) -> List[torch.Tensor]:
    """Return all tensors of a nested structure in order; dictionaries in the key order of `like` where it is given."""
    return list(_iterate(structure, like))


def _iterate(structure: Any, like: Any) -> Iterator[torch.Tensor]:
    parser = custom_parser(structure)
    if parser is not None:
        yield from parser.yieldTensors(structure)
    elif isinstance(structure, dict):
        for key in structure if like is None else like:
            yield from _iterate(structure[key], None if like is None else like[key])
    elif isinstance(structure, (list, tuple)):
        for index, element in enumerate(structure):
            yield from _iterate(element, None if like is None else like[index])
    elif isinstance(structure, torch.Tensor):
        yield structure


def _always(_: torch.Tensor) -> bool:
    return True


def rebuilt(structure: Any, tensors: Iterable[Any], is_replaced: Callable[[torch.Tensor], bool] = _always) -> Any:
    """Copy `structure` with its tensors replaced, in order; `is_replaced` says which."""
    return _rebuild(structure, iter(tensors), is_replaced)


def _rebuild(structure: Any, tensors: Iterator[Any], is_replaced: Callable[[torch.Tensor], bool]) -> Any:
    parser = custom_parser(structure)
    if parser is not None:
        return parser.reconstruct(structure, tensors)
    if isinstance(structure, dict):
        return type(structure)({key: _rebuild(value, tensors, is_replaced) for key, value in structure.items()})
    if isinstance(structure, (list, tuple)):
        elements = [_rebuild(element, tensors, is_replaced) for element in structure]
        if hasattr(structure, "_fields"):  # a named tuple takes its fields one by one
            return type(structure)(*elements)
        return type(structure)(elements)
    if isinstance(structure, torch.Tensor) and is_replaced(structure):
        return next(tensors)
    return structure
