"""analyze.py conversion: survey what convert_norm does to other libraries' networks."""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, List

from analysis.commands.arguments import Commands, add_command
from analysis.conversion.catalogue import LIBRARIES, candidates
from analysis.conversion.page import page
from analysis.conversion.survey import Surveyed, survey
from analysis.results_file import MAX_BYTES, ResultsError
from configs.atomic_file import replace_text
from configs.bounded_file import parse_json, read_bounded
from configs.counted import counted
from configs.output_place import check_file_name, check_output_folder


def add(commands: Commands, import_module: Callable[[str], Any]) -> None:
    parser = add_command(commands, "conversion", "survey what convert_norm does to other libraries' networks")
    option = parser.add_argument
    option("--library", nargs="+", choices=list(LIBRARIES), metavar="NAME", help=f"of {', '.join(LIBRARIES)}")
    option("--every", action="store_true", help="every network of timm and torchvision, not one of each family")
    option("--name", nargs="+", help="only these networks")
    option(
        "--rows",
        type=Path,
        default=Path("build/conversion.jsonl"),
        help="results file; networks already in it are not run again",
    )
    option("--page", type=Path, default=Path("build/conversion.md"), help="the page to write")
    stopped = "finished networks are in the results file; the same command continues from there"
    parser.set_defaults(command=conversion, when_stopped=stopped, import_module=import_module)


def conversion(options: argparse.Namespace) -> None:
    """Survey what is not in the file of results yet, and write the page of all that is."""
    for path in (options.rows, options.page):
        check_output_folder(path.parent)
        check_file_name(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    done = {(row.library, row.name) for row in read_rows(options.rows)}
    left: List[str] = []
    with _silence(), open(options.rows, "a", encoding="utf-8") as file:
        for library in options.library or LIBRARIES:
            for candidate in _installed(library, options):
                is_asked = options.name is None or candidate.name in options.name
                if (library, candidate.name) in done:
                    continue
                if not is_asked:
                    left.append(f"{library}: {candidate.name}")
                    continue
                row = survey(candidate)
                file.write(json.dumps(row.as_dict()) + "\n")
                file.flush()
                verdict = row.refused or row.runs or f"{row.with_proxy} of {row.norms} norms with PN"
                print(f"{library}: {candidate.name}: {verdict}, {len(row.missed)} of {row.pairs} pairs missed")
    rows = read_rows(options.rows)
    replace_text(options.page, page(rows, left))
    print(f"{options.page}: {counted(len(rows), 'network')}")


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing of what the networks' own code says of itself below an error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _installed(library: str, options: argparse.Namespace) -> Iterator[Any]:
    try:
        yield from candidates(library, options.import_module, every=options.every)
    except ImportError as error:
        print(f"{library} is left out: {error}; pip install {error.name or library}")


def read_rows(path: Path) -> List[Surveyed]:
    """Return the results so far, one a line.

    Raises:
        ResultsError: a line is none.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(read_bounded(path, MAX_BYTES).decode("utf-8").splitlines(), 1):
        try:
            rows.append(Surveyed(**parse_json(line)))
        except (ValueError, TypeError) as error:
            raise ResultsError(f"{path}, line {number} is not a survey result ({error}); remove it") from error
    return rows
