"""What the site has beyond the files of docs/: generated pages, pages from other folders, and links between them."""

import os
import re
import sys
from pathlib import Path
from typing import Any, Match

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs.document import PAGES  # noqa: E402

# file of the repository -> page of the site
PAGES_FROM_ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "emulator/README.md": "emulator.md",
}
PICTURES = "benchmarks/plots"
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in PAGES.items():
        files.append(File.generated(config, f"{name}.md", content=page()))
    for source, name in PAGES_FROM_ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_links_of(text, Path(source).parent)))
    for picture in sorted((ROOT / PICTURES).glob("*.svg")):
        files.append(File.generated(config, f"{PICTURES}/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    if page.file.src_uri in PAGES_FROM_ELSEWHERE.values():
        return markdown
    return _links_of(markdown, Path("docs") / Path(page.file.src_uri).parent)


def _links_of(text: str, folder: Path) -> str:
    """Return the text, whose links are those of a file in `folder`, with links of the site."""

    def replaced(match: Match[str]) -> str:
        label, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        path = os.path.normpath(folder / target)
        if path in PAGES_FROM_ELSEWHERE:
            return f"[{label}]({PAGES_FROM_ELSEWHERE[path]}{anchor})"
        if path.startswith(PICTURES):
            return f"[{label}]({path})"
        within = path[len("docs/") :] if path.startswith("docs/") else None
        if within is not None and (ROOT / path).is_file():
            return f"[{label}]({within}{anchor})"
        return label if label.strip("`") == path else f"{label} (`{path}`)"  # a file that the site does not have

    return _LINK.sub(replaced, text)
