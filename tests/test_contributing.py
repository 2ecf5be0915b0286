"""CONTRIBUTING.md follows the code: the tour's names are where it says, and the patches that it shows apply."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Set

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOUR = re.findall(r"(?m)^\d+\. (.*)$", TEXT.split("## Ten minutes with one batch")[1].split("\n## ")[0])


def test_the_tour_has_a_step_for_each_hop() -> None:
    assert len(TOUR) == 10


@pytest.mark.parametrize("step", TOUR, ids=[f"step {number}" for number in range(1, len(TOUR) + 1)])
def test_each_name_of_the_tour_is_defined_in_the_file_before_it(step: str) -> None:
    for path, name in re.findall(r"`([\w/]+\.py)`, `(\w+)`", step):
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"(?m)^ *(?:def|class) {name}\b", source), f"{path} has no {name}"
    for path in re.findall(r"`([\w/]+\.(?:py|yaml))`", step):
        assert (ROOT / path).is_file()


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
@pytest.mark.parametrize(
    ("patch", "touched"),
    [
        ("network", {"models/plain_net.py", "models/__init__.py", "tests/models/test_models.py"}),
        ("data_set", {"datasets/mnist.py", "datasets/__init__.py", "configs/schema/config.py"}),
    ],
)
def test_a_patch_applies_and_touches_what_the_table_says(patch: str, touched: Set[str]) -> None:
    path = ROOT / f"docs/changes/{patch}.patch"
    found = set(re.findall(r"(?m)^\+\+\+ b/(.*)$", path.read_text(encoding="utf-8")))
    assert found == touched
    row = next(line for line in TEXT.splitlines() if f"docs/changes/{patch}.patch" in line)
    assert all(f"`{name}`" in row or f"`{Path(name).parent}/`" in row for name in touched)
    subprocess.run(["git", "apply", "--check", str(path)], cwd=ROOT, check=True)
