"""What the documents say can be typed: commands parse, experiments, files, links and imported names exist."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import pytest

import analyze
import evaluate
import export
import reproduce
import train
from configs import config_names
from configs.document import NO_DEFAULT, configuration_page, experiments_page
from configs.load import find_config, load_config
from configs.schema import Config
from grids.load import find_grid

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "emulator/README.md", "benchmarks/NOTES.md")
]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
PARSERS: Dict[str, Callable[[Optional[List[str]]], object]] = {
    "train.py": train.parse_arguments,
    "evaluate.py": evaluate.parse_arguments,
    "export.py": export.parse_arguments,
    "analyze.py": analyze.parse_arguments,
    "reproduce.py": reproduce.parse_arguments,
}
ROOMS = {path.name for path in ROOT.iterdir() if path.is_dir()}
# In place of a name that the reader chooses, and files that a command makes.
NAMES_OF_THE_READER = {"NAME", "GRID", "PATH", "RUN", "your_poptorch_program.py", "program.py"}


def indented_lines(text: str) -> Iterator[str]:
    """Return the lines of code blocks by indentation, those that end in a backslash joined with the next."""
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    joined = re.sub(r"\\\n +", "", text)
    return (line.strip() for line in joined.splitlines() if line.startswith("    "))


def commands(document: Path) -> Iterator[List[str]]:
    """(program or -m module, arguments ...) of every `python` command, in code blocks and between backticks."""
    text = document.read_text(encoding="utf-8")
    for line in [*indented_lines(text), *re.findall(r"`([^`\n]+)`", text)]:
        start = re.search(r"(?:^|[ ])python ((?:-m )?[\w./]+)( .*)?$", re.split(r" {3,}| #", line)[0])
        start = start or re.search(r"^(?:torchrun|poprun) .*?([\w/]+\.py)( .*)?$", re.split(r" {3,}| #", line)[0])
        if start is not None:
            yield [*start.group(1).split(), *shlex.split(start.group(2) or "")]


ALL_COMMANDS = sorted({(path.name, *words) for path in DOCUMENTS for words in commands(path)})


def test_commands_are_found() -> None:
    assert len(ALL_COMMANDS) > 60  # else the tests below have nothing to look at


@pytest.mark.parametrize("words", [words[1:] for words in ALL_COMMANDS if words[1] in PARSERS], ids=" ".join)
def test_a_command_of_the_documents_is_understood(words: Sequence[str]) -> None:
    program, *arguments = words
    if "..." in arguments or not arguments or "COMMAND" in arguments:
        return
    PARSERS[program](arguments)  # ends the test with SystemExit for an unknown option
    if program == "reproduce.py" and arguments[0] not in NAMES_OF_THE_READER:
        find_grid(arguments[0])
    if "--config" in arguments:
        name = arguments[arguments.index("--config") + 1]
        overrides = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
        if name not in NAMES_OF_THE_READER:
            load_config(name, [text for text in overrides if text != "SECTION.KEY=VALUE"])


@pytest.mark.parametrize("words", [words[1:] for words in ALL_COMMANDS if words[1] == "-m"], ids=" ".join)
def test_a_module_of_the_documents_is_there(words: Sequence[str]) -> None:
    module = words[1]
    if module == "popdist.run":
        assert (ROOT / "emulator/popdist/run.py").is_file()
    else:
        assert importlib.util.find_spec(module) is not None
    if "--config" in words:
        find_config(words[words.index("--config") + 1]) if "NAME" not in words else None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_files_that_a_document_mentions_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    outside = re.sub(r"(?ms)^```.*?^```$", "", text)
    links = [target.partition("#") for target in re.findall(r"\]\(([^)\s]+)\)", outside)]
    missing = [
        path for path, _, _ in links if path and "://" not in path and not (document.parent / path).resolve().exists()
    ]
    for path in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|yaml|txt|sh|cpp))`", outside):
        near = [ROOT / path, document.parent / path]
        if path.split("/")[0] in ROOMS and not any(place.exists() for place in near):
            missing.append(path)
    assert not missing
    for path, _, anchor in links:
        if anchor and path.endswith(".md"):
            assert anchor in headings((document.parent / path).read_text(encoding="utf-8")), f"{path}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_row_of_a_table_has_more_cells_than_its_head(document: Path) -> None:
    """What is too much is not shown, and what stands before it is shown in the wrong column."""
    rows = [(0, 0, "")]  # cells of the head, of the row, and the row
    for line in document.read_text(encoding="utf-8").splitlines():
        cells = re.sub(r"`[^`]*`|\\\|", "", line).count("|") - 1 if line.startswith("|") else 0
        rows.append((rows[-1][0] or cells if cells else 0, cells, line))
    assert [line for head, cells, line in rows if cells > head] == []


def headings(text: str) -> List[str]:
    """Return the anchors of a document's headings, as on the site."""
    titles = re.findall(r"(?m)^#+ (.*)$", text)
    return [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_targets_of_make_that_a_document_mentions_are_there(document: Path) -> None:
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    text = document.read_text(encoding="utf-8")
    mentioned = set(re.findall(r"(?m)(?:^    |`)make ([a-z][\w-]*)", text))
    assert mentioned <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_a_document_is_python_and_imports_what_there_is(document: Path) -> None:
    for block in re.findall(r"(?ms)^```python\n(.*?)^```$", document.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ROOMS:
                module = importlib.import_module(node.module or "")
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


def every_setting() -> Iterator[Tuple[str, str]]:
    for section, field in Config.model_fields.items():
        for name, setting in field.annotation.model_fields.items():
            yield f"{section}.{name}", setting.description or ""


def test_every_setting_is_on_the_reference_page_with_its_meaning() -> None:
    page = configuration_page()
    for key, description in every_setting():
        assert description, f"{key} has no description"
        assert page.count(f"| `{key}` | {description.replace('|', chr(92) + '|')} |") == 1


def test_the_reference_page_has_types_ranges_and_defaults() -> None:
    rows = {line.split(" | ")[0].strip("| `"): line.split(" | ")[2:] for line in configuration_page().splitlines()}
    assert rows["optimizer.learning_rate"] == ["number, > 0", "required |"]
    assert rows["regularization.label_smoothing"] == ["number, ≥ 0, < 1", "0.0 |"]
    assert rows["norm.grouping"] == ["contiguous / strided", f"{NO_DEFAULT} |"]
    assert rows["device.compile"] == ["true / false", "false |"]
    assert rows["schedule.milestones"][0] == "list"


def test_every_experiment_is_in_the_table_with_the_accuracy_that_is_expected() -> None:
    rows = [line for line in experiments_page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == sorted(config_names(), key=lambda n: (find_config(n).parent.name, n))
    assert (
        "| `rn50_gn8pn` | resnet50 | group, 8 groups + PN | image_folder | 100 | 0.763 | the paper, Table 2 |" in rows
    )


def test_the_site_takes_nothing_from_elsewhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in settings and "http" not in settings
    # Without a file of ours by this name the offline plugin fetches one, and a page opened from disk has no search.
    assert re.search(r"polyfills: \[iframe-worker\.js\]", settings)
    for name in ("site.css", "iframe-worker.js"):
        assert "http" not in (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r": (\w+\.md)", settings))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= listed


@pytest.mark.parametrize(
    ("label", "row"),
    [
        *((f"| batch norm | {images} |", f"bn{images}") for images in (128, 16, 8, 4, 2)),
        ("| group norm, 8 groups | 1 |", "gn8"),
        ("| group norm, 8 groups + PN | 1 |", "gn8pn"),
        ("| layer norm + PN | 1 |", "lnpn"),
    ],
)
def test_the_table_of_the_first_screen_is_the_mean_of_six_result_files(label: str, row: str) -> None:
    def mean_top1(name: str) -> float:
        files = sorted((ROOT / "docs/results/small_batch").glob(f"{name}.seed*.json"))
        assert len(files) == 6
        return 100 * sum(json.loads(file.read_text())["summary"]["top1"] for file in files) / 6

    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(label)]
    assert f"| {mean_top1(row):.2f} |" in line
    if row != "bn128":
        assert f"{mean_top1(row) - mean_top1('bn128'):+.2f} [" in line


def test_the_first_screen_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_no_published_file_names_a_folder_of_the_machine_that_made_it() -> None:
    published = [*DOCUMENTS, *(ROOT / "docs").rglob("*.json"), *(ROOT / "benchmarks/results").rglob("*.json")]
    folders = re.compile(r"(?<![\w.~<>-])/(?:work|root|home|Users)/\w+")
    found = [(path.name, folders.findall(path.read_text(encoding="utf-8"))) for path in published]
    assert [each for each in found if each[1]] == []
