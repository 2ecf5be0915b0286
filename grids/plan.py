"""The runs that a grid describes, in their order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from configs import Config, ConfigError, load_config
from grids.schema import Column, Grid


@dataclass(frozen=True)
class Cell:
    """One row in one column, of any seed.

    Attributes:
        column: None where the grid has no columns.
        overrides: section.key=value each, those of the command line last.
        rates_cell: (row, column) whose learning-rate check decides; None where the experiment's rate stays.
    """

    row: str
    column: Optional[str]
    experiment: str
    overrides: Tuple[str, ...]
    rates_cell: Optional[Tuple[str, Optional[str]]]

    def __str__(self) -> str:
        return self.row if self.column is None else f"{self.row}.{self.column}"

    def config(self, seed: int, factor: Optional[float] = None) -> Config:
        """Return the complete configuration of one run."""
        return load_config(self.experiment, self.all_overrides(seed, factor))

    def all_overrides(self, seed: int, factor: Optional[float] = None) -> List[str]:
        """With seed, threads and, times `factor`, the learning rate."""
        overrides = [*self.overrides, f"run.seed={seed}", "device.threads=1"]
        if factor is not None:
            rate = load_config(self.experiment, overrides).optimizer.learning_rate * factor
            overrides.append(f"optimizer.learning_rate={json.dumps(rate)}")
        return overrides


@dataclass(frozen=True)
class Trial:
    """One run: a cell with a seed; `factor` of a learning-rate check, None for an evaluated run."""

    cell: Cell
    seed: int
    factor: Optional[float] = None

    @property
    def is_check(self) -> bool:
        return self.factor is not None

    def __str__(self) -> str:
        rate = "" if self.factor is None else f" rate x{self.factor:g}"
        return f"{self.cell}{rate} seed {self.seed}"

    @property
    def file_name(self) -> str:
        """Without an ending; of its folder below runs/ and of its result."""
        return f"{self.cell}.seed{self.seed}" if self.factor is None else f"rates/{self.cell}.x{self.factor:g}"


@dataclass(frozen=True)
class Selection:
    """Which part of a grid: None means all of it. `overrides` are the command line's."""

    rows: Optional[Sequence[str]] = None
    columns: Optional[Sequence[str]] = None
    seeds: Optional[Sequence[int]] = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """A grid's cells and the seeds to run them with."""

    cells: Tuple[Cell, ...]
    seeds: Tuple[int, ...]
    checked: Tuple[Cell, ...]
    factors: Tuple[float, ...]
    rates_seed: int

    def trials(self) -> List[Trial]:
        """Return the learning-rate checks, then every cell seed by seed, so that a stopped grid has whole seeds."""
        return [trial for cell in self.checked for trial in self.checks_of(cell)] + [
            Trial(cell, seed) for seed in self.seeds for cell in self.cells
        ]

    def checks_of(self, cell: Cell) -> List[Trial]:
        """Return the runs of the learning-rate check of `cell`."""
        return [Trial(cell, self.rates_seed, factor) for factor in self.factors]

    def checks_for(self, cell: Cell) -> List[Trial]:
        """Return the runs whose result decides the learning rate of `cell`; none where nothing is checked."""
        return [
            trial
            for checked in self.checked
            if (checked.row, checked.column) == cell.rates_cell
            for trial in self.checks_of(checked)
        ]


def build_plan(grid: Grid, selection: Selection) -> Plan:
    """Return the runs of `selection`, with the learning-rate checks that they need.

    Raises:
        ConfigError: a row, column or seed that cannot be, and a combination whose configuration is refused.
    """
    columns: Dict[Optional[str], Column] = {None: Column()}
    if grid.columns is not None:
        columns = {name: column for name, column in grid.columns.items()}
    rows = _chosen("--rows", selection.rows, list(grid.rows))
    chosen = _chosen("--columns", selection.columns, [name for name in columns if name is not None]) or [None]
    cells = {
        (row, column): _cell(grid, row, column, columns[column], selection.overrides)
        for column in columns
        for row in grid.rows
    }
    picked = [cells[row, column] for column in columns if column in chosen for row in grid.rows if row in rows]
    needed = {cell.rates_cell for cell in picked if cell.rates_cell is not None}
    seeds = tuple(grid.seeds if selection.seeds is None else selection.seeds)
    if grid.rates is not None and grid.rates.seed in seeds:
        raise ConfigError(f"--seeds: {grid.rates.seed} is the seed of the learning-rate check; use others")
    checked = tuple(cell for key, cell in cells.items() if key in needed)
    for cell in {*picked, *checked}:
        _check(cell)
    rates_seed = grid.rates.seed if grid.rates else 0
    return Plan(tuple(picked), seeds, checked, grid.rates.factors if grid.rates else (), rates_seed)


def _cell(grid: Grid, row: str, column: Optional[str], column_values: Column, overrides: Iterable[str]) -> Cell:
    values = grid.rows[row]
    experiment = values.experiment or grid.experiment
    assert experiment is not None  # as the schema requires
    source = (values.rates_from or row, column_values.rates_from or column)
    is_checked = grid.rates is not None and (grid.rates.rows is None or source[0] in grid.rates.rows)
    all_overrides = (*grid.set, *column_values.set, *values.set, *overrides)
    return Cell(row, column, column_values.prefix + experiment, all_overrides, source if is_checked else None)


def _chosen(option: str, names: Optional[Sequence[str]], there: List[str]) -> List[Any]:
    if names is None:
        return there
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ConfigError(f"{option} {','.join(unknown)}: the grid has {', '.join(there) or 'none'}")
    return list(names)


def _check(cell: Cell) -> None:
    try:
        config = cell.config(seed=0)
    except ConfigError as error:
        raise ConfigError(f"{cell}: {error}") from error
    if config.run.output_dir is not None:
        raise ConfigError(f"{cell}: run.output_dir {config.run.output_dir}: a grid's runs have folders of their own")
