"""A Markdown page whose blocks are what comparisons say, so that its numbers are those of the result files."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, List, Optional, Tuple

from analysis.comparison.written import Answer, picture_markdown
from analysis.results_file import ResultsError

if TYPE_CHECKING:  # drawing takes longer to import than all the rest
    from analysis.comparison.pictures.picture import Picture

BEGIN, END = "<!-- compare: ", "<!-- end of compare -->"
NOT_YET = "*No results yet.*"
_BLOCK = re.compile(rf"^{BEGIN}(?P<arguments>.*?) -->\n(?P<body>.*?)^{END}$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """What one block asks for: a comparison, its pictures, and the folder that they lie in."""

    answer: Answer
    pictures: Tuple[Picture, ...]
    folder: Path


# From the arguments of a block, as after `analyze.py compare`; None where there is no result yet.
Ask = Callable[[List[str]], Optional[Asked]]


def fill_page(text: str, page_folder: Path, ask: Ask) -> Tuple[str, List[Tuple[Picture, Path]]]:
    """Return the page with every block's body regenerated, and its pictures with the folders to save them in.

    A block stands between `<!-- compare: ARGUMENTS -->` and `<!-- end of compare -->`, each on a line of its own.

    Raises:
        ResultsError: a page without a block, or with a begin or an end that has no partner.
    """
    blocks = list(_BLOCK.finditer(text))
    if not blocks or len(blocks) != text.count(BEGIN) or len(blocks) != text.count(END):
        raise ResultsError(
            f"{text.count(BEGIN)} lines begin a block and {text.count(END)} end one; the page needs one at least, "
            f"each `{BEGIN}ARGUMENTS -->` on a line, and `{END}` on a later one"
        )
    pictures: List[Tuple[Picture, Path]] = []

    def body(match: "re.Match[str]") -> str:
        asked = ask(shlex.split(match["arguments"]))
        if asked is None:
            return f"{BEGIN}{match['arguments']} -->\n\n{NOT_YET}\n\n{END}"
        parts = [picture_markdown(each, each.path_in(asked.folder), page_folder) for each in asked.pictures]
        pictures.extend((each, asked.folder) for each in asked.pictures)
        filled = "\n".join([*parts, asked.answer.markdown()])
        return f"{BEGIN}{match['arguments']} -->\n\n{filled}\n{END}"

    return _BLOCK.sub(body, text), pictures
