"""What every section of the configuration has in common: frozen, strict, and no field without an effect."""

import os
from typing import Any, Tuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from typing_extensions import Annotated


def list_to_tuple(value: Any) -> Any:
    """YAML has lists; a frozen config needs tuples."""
    return tuple(value) if isinstance(value, list) else value


Floats = Annotated[Tuple[float, ...], BeforeValidator(list_to_tuple)]
Words = Annotated[Tuple[str, ...], BeforeValidator(list_to_tuple)]


def expand_home(path: Any) -> Any:
    """`~` and `~user` as shells have them, which leave them alone behind `--set data.dir=` and do not read files."""
    return os.path.expanduser(path) if isinstance(path, str) else path


def check_name(path: str) -> str:
    """Refuse a name that files cannot have: YAML writes texts that no system takes, and an unset variable leaves ""."""
    if not path:
        raise ValueError("an empty text is no name of a file or folder; name one, or leave the setting out (null)")
    try:
        is_name = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise ValueError(f"{path!a} can be no name of a file; remove what is no character")
    return path


PathText = Annotated[str, BeforeValidator(expand_home), AfterValidator(check_name)]


class Section(BaseModel):
    """One section of the YAML file: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def refuse_unused(self, choice: str, unused: Tuple[str, ...]) -> None:
        """Raise for fields that were given a value although `choice` has no use for them."""
        for name in unused:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} = {getattr(self, name)!r} has no effect with {choice}; remove it")
