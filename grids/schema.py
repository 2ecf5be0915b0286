"""What a grid is: the frozen, checked form of a file of configs/grids."""

from typing import Any, Dict, List, Optional, Tuple

from pydantic import BeforeValidator, Field, field_validator, model_validator
from typing_extensions import Annotated

from configs.schema.section import Floats, Section, Words, list_to_tuple
from grids.seeds import check_name, parse_seeds


def _seeds(value: Any) -> Any:
    return parse_seeds(value) if isinstance(value, str) else list_to_tuple(value)


Seeds = Annotated[Tuple[int, ...], BeforeValidator(_seeds)]


class Row(Section):
    """One row: an experiment with overrides."""

    experiment: Optional[str] = Field(None, description="a name of configs/; default: the grid's")
    set: Words = Field((), description="section.key=value each, as after --set")
    rates_from: Optional[str] = Field(None, description="row whose learning-rate check counts here; default: its own")


class Column(Section):
    """One column: overrides for every row."""

    prefix: str = Field("", description="put before the name of each row's experiment, such as fashion_rn20_")
    set: Words = Field((), description="section.key=value each; a row's own come after them")
    rates_from: Optional[str] = Field(None, description="column whose learning-rate check counts here; default: own")


class Rates(Section):
    """The learning-rate check: each row and column is trained once with each factor, before all else."""

    factors: Floats = Field((0.5, 1.0, 2.0), description="of the experiment's learning rate")
    seed: int = Field(ge=0, description="one that no evaluated run has")
    rows: Optional[Words] = Field(None, description="rows to check; default: all. The others keep their rate")

    @field_validator("factors")
    @classmethod
    def check_factors(cls, factors: Tuple[float, ...]) -> Tuple[float, ...]:
        if len(set(factors)) < 2 or len(set(factors)) < len(factors) or min(factors) <= 0:
            raise ValueError(f"factors {list(factors)} must be two or more different numbers above 0")
        return factors


class Grid(Section):
    """Rows, columns and seeds; every combination is a run."""

    title: str = Field(description="what the grid must show, in one line")
    experiment: Optional[str] = Field(None, description="of rows that name none")
    set: Words = Field((), description="section.key=value each, for every run; columns' and rows' come after them")
    seeds: Seeds = Field(description="a list, or text such as 0-5")
    rows: Dict[str, Row]
    columns: Optional[Dict[str, Column]] = Field(None, description="default: one column without a name")
    rates: Optional[Rates] = Field(None, description="default: no learning-rate check")
    figures: Words = Field(("top1",), description="keys of summary.json to tabulate, with dots for what is inside")
    keep_checkpoints: bool = Field(False, description="of finished runs; false: they go, metrics stay")

    @model_validator(mode="after")
    def check(self) -> "Grid":
        for name in [*self.rows, *(self.columns or ())]:
            check_name(name)
        if not self.rows or not self.seeds or self.columns == {}:
            raise ValueError("a grid needs at least one row, one seed and, where it has columns, one column")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds {list(self.seeds)} must be different numbers from 0 on")
        without = [name for name, row in self.rows.items() if row.experiment is None and self.experiment is None]
        if without:
            raise ValueError(f"rows {', '.join(without)} name no experiment, and the grid has none; add experiment")
        self._check_rates()
        return self

    def _check_rates(self) -> None:
        if self.rates is None:
            return
        if self.rates.seed in self.seeds:
            raise ValueError(
                f"rates.seed {self.rates.seed} is one of the evaluated seeds {list(self.seeds)}; use another, so that "
                "the rate is not chosen on what it is judged by"
            )
        unknown = [name for name in self.rates.rows or () if name not in self.rows]
        if unknown:
            raise ValueError(f"rates.rows {', '.join(unknown)}: no such row; rows are {', '.join(self.rows)}")
        self._check_sources("rows", {name: row.rates_from for name, row in self.rows.items()})
        self._check_sources("columns", {name: column.rates_from for name, column in (self.columns or {}).items()})

    @staticmethod
    def _check_sources(kind: str, sources: Dict[str, Optional[str]]) -> None:
        wrong: List[str] = [
            f"{kind}.{name}.rates_from {source}"
            for name, source in sources.items()
            if source is not None and sources.get(source, name) is not None
        ]
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}: name one of {kind} that has its own check: {', '.join(sources)}")
