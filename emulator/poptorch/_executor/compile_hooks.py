"""Functions of the program's own that run before and after each compilation."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Callable, Dict

from torch.utils.hooks import RemovableHandle

precompile_hooks: Dict[int, Callable[[], Any]] = OrderedDict()
postcompile_hooks: Dict[int, Callable[[], Any]] = OrderedDict()


def _register(hooks: Dict[int, Callable[[], Any]], hook: Callable[[], Any], name: str) -> RemovableHandle:
    if not callable(hook):
        raise RuntimeError(f"{name} hook must be callable, got {type(hook)}")
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def registerPreCompileHook(hook: Callable[[], Any]) -> RemovableHandle:
    """Call `hook` before each compilation; remove() of the returned handle ends that."""
    return _register(precompile_hooks, hook, "Pre-compile")


def registerPostCompileHook(hook: Callable[[], Any]) -> RemovableHandle:
    """Call `hook` after each compilation; remove() of the returned handle ends that."""
    return _register(postcompile_hooks, hook, "Post-compile")
