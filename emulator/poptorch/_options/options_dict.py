"""The base of all option objects: named values with fixed types that can be frozen."""

from __future__ import annotations

import copy
from typing import Any, Dict, Optional


class OptionsDict:
    """Named option values; reading an unknown one, or writing to a frozen object, is an AttributeError.

    A value keeps the type it was created with: another type is an AssertionError.
    """

    def __init__(self, **default_values: Any) -> None:
        self.__dict__["_values"] = default_values
        self.__dict__["_is_frozen"] = False

    def set(self, **kwargs: Any) -> None:
        """Change existing options.

        Raises:
            AssertionError: no such option, or a value of another type than the present one.
            AttributeError: the options are frozen.
        """
        self.checkIsFrozen()
        for option, value in kwargs.items():
            if option not in self._values:
                raise AssertionError(f"Invalid option {option}, valid options are {list(self._values)}")
            expected = type(self._values[option])
            if not isinstance(value, expected):
                raise AssertionError(f"Unexpected type {type(value)} for option {option}. Expected {expected}")
            self._values[option] = value

    def createOrSet(self, **kwargs: Any) -> None:
        """Like set, but an option that does not exist yet is created."""
        self.checkIsFrozen()
        for option, value in kwargs.items():
            if option in self._values:
                self.set(**{option: value})
            else:
                self._values[option] = value

    def exists(self, option: str) -> bool:
        """Whether the option has a value."""
        return option in self._values

    def deleteIfExists(self, option: str) -> None:
        """Forget the option."""
        self.checkIsFrozen()
        self._values.pop(option, None)

    def _freeze(self) -> None:
        self._set_frozen(True)

    def _unfreeze(self) -> None:
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        self.__dict__["_is_frozen"] = frozen
        for value in self.__dict__.values():
            if hasattr(value, "_is_frozen"):
                value.__dict__["_is_frozen"] = frozen

    def checkIsFrozen(self, option: Optional[str] = None) -> None:
        """Raise AttributeError if the options are frozen; `option` is what was about to change."""
        if option != "_is_frozen" and self.__dict__.get("_is_frozen", False):
            hint = f" (option {option}); clone() them" if option else ""
            raise AttributeError("Can't modify frozen Options" + hint)

    def __deepcopy__(self, memo: Dict[int, Any]) -> OptionsDict:
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        for name, value in self.__dict__.items():
            duplicate.__dict__[name] = False if name == "_is_frozen" else copy.deepcopy(value, memo)
        return duplicate

    def __getstate__(self) -> Dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __setattr__(self, option: str, value: Any) -> None:
        if option == "__class__":  # how popdist turns options into its own
            object.__setattr__(self, option, value)
            return
        self.checkIsFrozen(option)
        if not option.startswith("_"):
            self.set(**{option: value})
        elif option in self.__dict__:
            self.__dict__[option] = value
        else:
            raise AttributeError(f"Invalid private attribute {option}. Valid attributes: {list(self.__dict__)}")

    def __getattr__(self, option: str) -> Any:
        values = self.__dict__.get("_values", {})
        if option in values:
            return values[option]
        raise AttributeError(f"Invalid attribute {option}.")

    def update(self, other: Dict[str, Any]) -> Dict[str, Any]:
        """Add all values to the dictionary `other` and return it; a key in both is an AssertionError."""
        shared = set(self._values) & set(other)
        if shared:
            raise AssertionError(f"Can't merge dictionaries, they have some keys in common: {sorted(shared)}")
        other.update(self._values)
        return other

    def toDict(self) -> Dict[str, Any]:
        """Return all values by name."""
        return self.update({})

    def __call__(self, option: str) -> Any:
        return getattr(self, option)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"
