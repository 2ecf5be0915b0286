"""Functions that libraries exchange for others while a model is on the device, as PopTorch Geometric does."""

from __future__ import annotations

from typing import Any, List


class _OverwriteContextManager:
    """While entered, what the registered managers replace is replaced; the names are PopTorch's."""

    _subsitution_manager_types: List[Any] = []

    def __init__(self) -> None:
        self.substitution_managers = [manager() for manager in type(self)._subsitution_manager_types]

    def __enter__(self) -> _OverwriteContextManager:
        for manager in self.substitution_managers:
            manager.replace()
        return self

    def __exit__(self, *details: Any) -> None:
        for manager in reversed(self.substitution_managers):
            manager.restore()

    @classmethod
    def registerSubsitutionManager(cls, type: Any) -> None:
        """Add a class whose objects have replace() and restore()."""
        if type not in cls._subsitution_manager_types:
            cls._subsitution_manager_types.append(type)
