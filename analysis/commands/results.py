"""analyze.py results: the tables and pictures of a page, made from the result files that it is about."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import List, NoReturn, Optional

from analysis.commands.arguments import Commands, add_command
from analysis.commands.compare import add_question, add_written, question_of
from analysis.comparison.results_page import Asked, fill_page
from analysis.comparison.run_result import is_empty
from analysis.comparison.written import answer
from analysis.results_file import MAX_BYTES, ResultsError
from configs.atomic_file import replace_text
from configs.bounded_file import read_bounded
from configs.counted import counted


class _BlockParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ResultsError(f"a block of the page cannot be read: {message}")


def add(commands: Commands) -> None:
    parser = add_command(commands, "results", "fill the tables and pictures of a page from its result files")
    option = parser.add_argument
    option(
        "--page", type=Path, default=Path("docs/results.md"), help="a Markdown page with blocks `<!-- compare: ... -->`"
    )
    option("--check", action="store_true", help="write nothing; fail if the page does not match the files")
    parser.set_defaults(command=results, when_stopped="the page is unchanged")


def results(options: argparse.Namespace) -> None:
    """Fill the page's blocks and draw their pictures, or check that they are as they would be."""
    try:
        text = read_bounded(options.page, MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise ResultsError(f"--page {options.page} cannot be read: {error.strerror}") from error
    filled, pictures = fill_page(text, options.page.parent, ask)
    if options.check:
        paths = [picture.path_in(folder) for picture, folder in pictures]
        wrong = [str(options.page)] * (filled != text) + [
            str(path) for path, (picture, _) in zip(paths, pictures) if not picture.is_saved(path)
        ]
        if wrong:
            raise ResultsError(f"{', '.join(wrong)}: not what the result files say; run `python analyze.py results`")
        print(f"{options.page} and {counted(len(pictures), 'picture')} match the result files")
        return
    for picture, folder in pictures:
        print(picture.save(folder))
    replace_text(options.page, filled)
    print(options.page)


def ask(arguments: List[str]) -> Optional[Asked]:
    """Return what a block's arguments ask for; None where a grid has no result yet."""
    parser = _BlockParser(prog="compare", add_help=False)
    add_question(parser)
    add_written(parser)
    options = parser.parse_args(arguments)
    if (options.out is None) != (options.pictures is None):
        raise ResultsError("a block of the page has --pictures and --out, or neither")
    missing = [str(path) for path in options.runs if is_empty(path)]
    if missing:
        print(f"{', '.join(missing)}: no results yet")
        return None
    answered = answer(question_of(options))
    return Asked(answered, tuple(answered.chosen(options.pictures or [])), options.out or Path())
