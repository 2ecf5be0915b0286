"""Options.loadFromFile: option calls from a text file."""

from __future__ import annotations

import os
from typing import Any, Dict

from .options_dict import OptionsDict


class ConfigFileError(Exception):
    """A line of the file is not a Python call."""


def apply(options: OptionsDict, path: str) -> None:
    """Run each line of the file as a method call on `options`; empty lines and comments are skipped.

    Raises:
        ConfigFileError: a syntax error, with its line among the lines that are calls.
    """
    with open(path) as file:
        lines = [line.strip() for line in file]
    calls = "\n".join(f"options.{line}" for line in lines if line and not line.startswith("#"))
    try:
        program = compile(calls, path, "exec")
    except SyntaxError as error:
        raise ConfigFileError(
            f"SyntaxError at line {error.lineno} of {os.path.basename(path)}: {error.msg}\n> {error.text}"
        ) from error
    names: Dict[str, Any] = {}
    exec("import poptorch", names)  # the program's import, not this file's, which Options needs itself
    exec(program, names, {"options": options})
