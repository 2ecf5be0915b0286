"""What programs leave behind in this process, and how to clear it away: for tests, which follow each other."""

from __future__ import annotations

import logging
import weakref
from typing import Any, List

from .._logging import level_of_environment, logger
from . import wrapping
from .compile_hooks import postcompile_hooks, precompile_hooks

live_executors: Any = weakref.WeakSet()


class Remains:
    """The executors, wrapped models, hooks around compilation and log level of a moment; is_fresh: of none yet."""

    def __init__(self, is_fresh: bool = False) -> None:
        self._executors = set() if is_fresh else set(live_executors)
        self._models = set() if is_fresh else {id(model) for model in _wrapped()}
        self._hooks = [(hooks, {} if is_fresh else dict(hooks)) for hooks in (precompile_hooks, postcompile_hooks)]
        self._level = level_of_environment() if is_fresh else logger.level

    def restore(self) -> None:
        """Go back to that moment: destroy the executors that were made since, and undo hooks and log level."""
        logger.setLevel(logging.ERROR)  # nobody is interested in this any more
        for executor in [executor for executor in live_executors if executor not in self._executors]:
            executor.destroy()
            live_executors.discard(executor)
        for model in _wrapped():  # of executors that were never compiled, or are no more
            if id(model) not in self._models:
                wrapping.unwrap_model(model)
        for hooks, kept in self._hooks:
            hooks.clear()
            hooks.update(kept)
        logger.setLevel(self._level)


def _wrapped() -> List[Any]:
    return [model for model in wrapping.wrapped_models if wrapping.is_wrapped(model)]
