"""What the site has beyond the files of docs/: generated pages, pages from other folders, and links between them."""

import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, Match, Tuple

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
NOTEBOOK, NOTEBOOK_PAGE = "examples/train_convert_draw.ipynb", "notebook.md"
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in PAGES.items():
        files.append(File.generated(config, f"{name}.md", content=page()))
    for source, name in PAGES_FROM_ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_links_of(text, Path(source).parent)))
    for picture in sorted((ROOT / PICTURES).glob("*.svg")):
        files.append(File.generated(config, f"{PICTURES}/{picture.name}", abs_src_path=str(picture)))
    text, pictures = _notebook(json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8")))
    files.append(File.generated(config, NOTEBOOK_PAGE, content=_links_of(text, Path(NOTEBOOK).parent)))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    if page.file.src_uri in (*PAGES_FROM_ELSEWHERE.values(), NOTEBOOK_PAGE):
        return markdown
    return _links_of(markdown, Path("docs") / Path(page.file.src_uri).parent)


def _links_of(text: str, folder: Path) -> str:
    """Return the text, whose links are those of a file in `folder`, with links of the site."""

    def replaced(match: Match[str]) -> str:
        label, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        path = os.path.normpath(folder / target)
        if path in PAGES_FROM_ELSEWHERE:
            return f"[{label}]({PAGES_FROM_ELSEWHERE[path]}{anchor})"
        if path == NOTEBOOK:
            return f"[{label}]({NOTEBOOK_PAGE})"
        if path.startswith(PICTURES):
            return f"[{label}]({path})"
        within = path[len("docs/") :] if path.startswith("docs/") else None
        if within is not None and (ROOT / path).is_file():
            return f"[{label}]({within}{anchor})"
        return label if label.strip("`") == path else f"{label} (`{path}`)"  # a file that the site does not have

    return _LINK.sub(replaced, text)


def _notebook(notebook: Dict[str, Any]) -> Tuple[str, Dict[str, bytes]]:
    """Return a notebook with its stored outputs as Markdown, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                parts.append("```text\n" + "".join(output["text"]).rstrip() + "\n```")
            elif "image/png" in output["data"]:
                name = f"notebook_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![The figure that the cell above draws]({name})")
    return "\n\n".join(parts), pictures
