"""Keeps tensors from becoming sequences once their __getitem__ was exchanged.

Python gives a class whose `__getitem__` is set a slot for items of sequences, and leaves it there when `__getitem__` is
deleted again. torch.tensor() then takes tensors without dimensions for sequences, and asks for their length.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import sysconfig
from typing import Iterator, List, Tuple

import torch

# Whether types are laid out so: not in builds that trace references or have no interpreter lock.
_IS_KNOWN = (
    sys.implementation.name == "cpython"
    and not hasattr(sys, "getobjects")
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
)
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_TP_AS_SEQUENCE = 13 * _POINTER  # in CPython's PyTypeObject
_SQ_ITEM = 3 * _POINTER  # in PySequenceMethods


@contextlib.contextmanager
def sequence_slots_kept() -> Iterator[None]:
    """On leaving, give torch.Tensor and the classes derived from it the slots that they had.

    In an interpreter whose types are laid out otherwise, nothing is done.
    """
    kept: List[Tuple[ctypes.c_void_p, object]] = []
    classes: List[type] = [torch.Tensor] if _IS_KNOWN else []
    while classes:
        cls = classes.pop()
        classes += type.__subclasses__(cls)
        suite = ctypes.c_void_p.from_address(id(cls) + _TP_AS_SEQUENCE).value
        if suite:
            slot = ctypes.c_void_p.from_address(suite + _SQ_ITEM)
            kept.append((slot, slot.value))
    try:
        yield
    finally:
        for slot, value in kept:
            slot.value = value  # type: ignore[assignment]
