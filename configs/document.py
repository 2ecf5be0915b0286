"""Reference pages in Markdown, from the schema and the shipped experiments.

python -m configs.document configuration      every setting: meaning, type, range, default
python -m configs.document experiments        every experiment: network, norm, data, accuracy
"""

import argparse
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Type

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from configs.command_line import run_command
from configs.expected import expected_accuracy
from configs.load import config_names, find_config, load_config
from configs.schema import Config

NO_DEFAULT = "not set"
_RANGES = (
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Ge, "ge", "≥"),
    (annotated_types.Lt, "lt", "<"),
    (annotated_types.Le, "le", "≤"),
)


def configuration_page() -> str:
    """Return every section and field of the schema."""
    lines = [
        "# Configuration",
        "",
        "Every setting, from the schema that checks it. In a file a setting is a key of its section; on the command",
        "line it is `--set SECTION.KEY=VALUE`. Unknown keys, values of another type and settings without an effect are",
        "errors.",
    ]
    for section, field in Config.model_fields.items():
        model = field.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)
        lines += ["", f"## {section}", "", (model.__doc__ or "").strip(), ""]
        lines += _table(("setting", "meaning", "type", "default"), _rows_of(section, model))
    return "\n".join(lines) + "\n"


def experiments_page() -> str:
    """Return every shipped experiment, by folder."""
    lines = [
        "# Experiments",
        "",
        "Every experiment of configs/, by folder. `python train.py --config NAME` trains one; `--print-config` shows",
        "it whole. The expected top-1 accuracy is a fraction. Where its source is the paper, it has not been measured",
        "with this program; an empty cell means that it has never been measured.",
    ]
    by_folder: Dict[str, List[str]] = {}
    for name in config_names():
        by_folder.setdefault(find_config(name).parent.name, []).append(name)
    heads = ("name", "network", "norm", "data", "epochs", "expected top-1", "source")
    for folder in sorted(by_folder):
        lines += ["", f"## {folder}", "", *_table(heads, [_experiment_row(name) for name in by_folder[folder]])]
    return "\n".join(lines) + "\n"


PAGES: Dict[str, Callable[[], str]] = {"configuration": configuration_page, "experiments": experiments_page}


def _rows_of(section: str, model: Type[BaseModel]) -> List[Tuple[str, ...]]:
    return [
        (f"`{section}.{name}`", field.description or "", _type_text(model, name), _default_text(field))
        for name, field in model.model_fields.items()
    ]


def _type_text(model: Type[BaseModel], name: str) -> str:
    schema = model.model_json_schema()
    shape = _without_null(schema["properties"][name])
    if "enum" in shape or "const" in shape:
        return " / ".join(str(choice) for choice in shape.get("enum", [shape.get("const")]))
    kind = {"array": "list", "boolean": "true / false", "string": "text"}.get(shape["type"], shape["type"])
    bounds = _range_text(model.model_fields[name])
    return f"{kind}, {bounds}" if bounds else kind


def _without_null(shape: Dict[str, Any]) -> Dict[str, Any]:
    """Return the one alternative of an optional field that is not null."""
    alternatives = [other for other in shape.get("anyOf", [shape]) if other.get("type") != "null"]
    return alternatives[0]


def _range_text(field: FieldInfo) -> str:
    parts = [
        f"{sign} {_number_text(getattr(bound, attribute))}"
        for kind, attribute, sign in _RANGES
        for bound in field.metadata
        if isinstance(bound, kind)
    ]
    return ", ".join(parts)


def _number_text(number: Any) -> str:
    return "2^63" if number == 2**63 else str(number)


def _default_text(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return NO_DEFAULT
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _experiment_row(name: str) -> Tuple[str, ...]:
    config = load_config(name)
    norm = config.norm.name
    if config.norm.num_groups is not None:
        norm += f", {config.norm.num_groups} groups"
    if config.norm.proxy:
        norm += " + PN"
    expected = expected_accuracy(name)
    numbers = ("", "") if expected is None else (f"{expected.top1:.3f}", expected.source)
    return (f"`{name}`", config.model.name, norm, config.data.name, str(config.schedule.epochs), *numbers)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    cells = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Prints a reference page in Markdown.")
    parser.add_argument("page", nargs="?", choices=sorted(PAGES), help="default: all, one after another")
    options = parser.parse_args(arguments)
    print("\n".join(page() for name, page in PAGES.items() if options.page in (None, name)), end="")


if __name__ == "__main__":
    sys.exit(run_command(main))
