"""analyze.py compare: compare runs over several seeds, with paired differences and pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from analysis.commands.arguments import Commands, add_command
from analysis.comparison.metric import METRICS
from analysis.comparison.rows import BY_NAME
from analysis.comparison.written import KINDS, Question, answer, picture_markdown
from analysis.results_file import write_results
from configs.arguments import output_folder
from configs.atomic_file import replace_text


def add(commands: Commands) -> None:
    parser = add_command(commands, "compare", "compare runs over several seeds, with paired differences")
    add_question(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    add_written(parser)
    parser.set_defaults(command=compare, when_stopped="files already written are complete")


def add_question(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which runs are compared, and how."""
    option = parser.add_argument
    option("runs", nargs="+", type=Path, help="run folders, result files of a grid, or folders of either")
    option("--metric", nargs="+", choices=list(METRICS), default=["top1"], help="one table for each")
    option("--against", default="", metavar="ROW", help="row to compare the others with, paired by seed")
    option(
        "--pair",
        nargs=2,
        action="append",
        default=[],
        metavar=("ROW", "OTHER"),
        help="compare this row with that other; may be given several times",
    )
    option("--rows", nargs="+", default=[], metavar="ROW", help="rows to show, in this order; default: all")
    option(
        "--group-by",
        nargs="+",
        default=[],
        metavar="KEY",
        help=f"settings that tell rows apart, e.g. norm.name, or {BY_NAME}: names of rows and experiments alone; left "
        "out: these names, and all settings in which runs of one name differ",
    )
    option("--x", default="", metavar="KEY", help="also draw the first metric against a setting: batch.norm_batch_size")


def add_written(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which files are written."""
    parser.add_argument("--out", type=output_folder, help="folder for comparison.md, comparison.json and pictures")
    parser.add_argument("--pictures", nargs="+", choices=KINDS, help="with --out; default: all that can be drawn")


def question_of(options: argparse.Namespace) -> Question:
    return Question(
        runs=tuple(options.runs),
        metrics=tuple(options.metric),
        against=options.against,
        pairs=tuple((row, other) for row, other in options.pair),
        rows=tuple(options.rows),
        group_by=tuple(options.group_by),
        setting=options.x,
    )


def compare(options: argparse.Namespace) -> None:
    """Print the tables, and with --out write everything as files."""
    if options.pictures is not None and options.out is None:
        raise ValueError("--pictures has no effect without --out DIR; add it")
    answered = answer(question_of(options))
    tables, document = answered.markdown(), answered.to_json()
    if options.out is not None:
        write_results(options.out / "comparison.json", document)
        page = tables
        for picture in answered.chosen(options.pictures or list(answered.pictures)):
            page += "\n" + picture_markdown(picture, picture.save(options.out), options.out)
        replace_text(options.out / "comparison.md", page)
    print(json.dumps(document, indent=1, allow_nan=False) if options.json else tables)
