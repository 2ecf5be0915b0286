"""Printing modules with their blocks."""

from __future__ import annotations

import builtins
from typing import Any

import torch


def module_repr(m: torch.nn.Module) -> str:
    """Return a module's text as torch gives it, with BeginBlock(...) in front of modules that begin a block."""
    children = [f"({name}): {_indented(module_repr(child))}" for name, child in m._modules.items() if child is not None]
    extra = m.extra_repr()
    lines = (extra.split("\n") if extra else []) + children
    body = "".join(f"\n  {line}" for line in lines) + "\n" if children or len(lines) > 1 else "".join(lines)
    hooks = "".join(f"{hook!r} " for hook in m._forward_pre_hooks.values())
    return f"{hooks}{m._get_name()}({body})"


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def print(m: Any) -> None:
    """Print a module with its blocks, and then as it prints itself; other values once."""
    if isinstance(m, torch.nn.Module):
        builtins.print(module_repr(m))
    builtins.print(m)
