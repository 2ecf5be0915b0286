"""The accuracy that an experiment is expected to reach: configs/expected.yaml."""

from pathlib import Path
from typing import NamedTuple, Optional

from configs.errors import ConfigError
from configs.load import find_config, load_config
from configs.schema import Config
from configs.yaml_file import read_yaml

FILE = Path(__file__).resolve().parent / "expected.yaml"
_EXTRA = "_extra"
# What is learnt; the other sections say where and how a run is executed.
_MEANING = ("model", "norm", "batch", "regularization", "optimizer", "schedule", "averaging")


class Expected(NamedTuple):
    """Top-1 accuracy as a fraction, and who measured it."""

    top1: float
    source: str

    def __str__(self) -> str:
        return f"top-1 {self.top1:.3f} ({self.source})"


def expected_of_run(name: str, config: Config) -> Optional[Expected]:
    """Return what a run called `name` should reach: the shipped experiment's accuracy, if `config` still means it."""
    try:
        shipped = load_config(name)
    except ConfigError:
        return None  # a file of the user's
    is_the_same = all(getattr(shipped, section) == getattr(config, section) for section in _MEANING)
    return expected_accuracy(name) if is_the_same else None


def expected_accuracy(name: str) -> Optional[Expected]:
    """Return what experiment `name`, shipped under that name, is expected to reach; None where nobody measured it."""
    name = find_config(name).stem
    row, is_extra = (name[: -len(_EXTRA)], True) if name.endswith(_EXTRA) else (name, False)
    for source, rows in read_yaml(FILE)[0].items():
        if row in rows:
            value = rows[row]
            if isinstance(value, list):
                return Expected(value[is_extra], source)
            return None if is_extra else Expected(value, source)
    return None
