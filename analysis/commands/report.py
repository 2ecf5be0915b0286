"""analyze.py report: compare runs on one HTML page that works offline."""

from __future__ import annotations

import argparse

from analysis.commands.arguments import Commands, add_command
from analysis.commands.compare import add_question, question_of
from analysis.comparison.written import answer
from configs.arguments import output_folder


def add(commands: Commands) -> None:
    parser = add_command(commands, "report", "compare runs on one HTML page that works offline")
    add_question(parser)
    parser.add_argument("--out", type=output_folder, required=True, help="folder of index.html")
    parser.add_argument("--title", default="Runs compared", help="of the page")
    parser.set_defaults(command=report, when_stopped="an earlier page is unchanged")


def report(options: argparse.Namespace) -> None:
    """index.html: settings that differ, tables, pictures, speed."""
    from analysis.report.page import write_page

    print(write_page(options.out / "index.html", options.title, answer(question_of(options))))
