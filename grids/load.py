"""From a grid's name on the command line to a checked Grid, with errors that name file, line and key."""

import difflib
from pathlib import Path
from typing import List

from pydantic import ValidationError

from configs import ConfigError
from configs.explain import explain
from configs.load import FOLDER as CONFIGS
from configs.load import named_file
from configs.yaml_file import read_yaml
from grids.schema import Grid

FOLDER = CONFIGS / "grids"


def load_grid(name_or_path: str) -> Grid:
    """Return the grid called `name_or_path`: configs/grids/<name>.yaml, or the path of a YAML file.

    Raises:
        ConfigError: one line for each problem.
    """
    path = find_grid(name_or_path)
    values, lines = read_yaml(path)
    try:
        return Grid.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, Grid, path, lines))) from error


def grid_names() -> List[str]:
    """Return the names of the shipped grids."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_grid(name_or_path: str) -> Path:
    """Return the YAML file of a shipped grid or of a path."""
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        return named_file(name_or_path, name_or_path)
    if name_or_path in grid_names():
        return FOLDER / f"{name_or_path}.yaml"
    near = difflib.get_close_matches(name_or_path, grid_names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise ConfigError(f"{name_or_path}: no such grid{hint} There are {', '.join(grid_names())}; a path will do as well")
