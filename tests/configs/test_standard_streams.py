"""Commands that are started with closed streams, as services and `>&- 2>&-` do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--config", "generated_smoke", "--device", "cpu"]
for setting in ("data.num_train_images=64", "data.num_eval_images=20", "schedule.epochs=1"):
    SMALL += ["--set", setting]


def without_streams(*command: str) -> int:
    words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, *command]
    return subprocess.run(words, cwd=ROOT, timeout=600, check=False).returncode


def test_a_run_its_evaluation_and_its_curves_are_whole_without_a_console(tmp_path: Path) -> None:
    folder, report = tmp_path / "run", tmp_path / "report.json"
    assert without_streams("train.py", *SMALL, "--output-dir", str(folder)) == 0
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert without_streams("evaluate.py", str(folder), "--out", str(report)) == 0
    assert json.loads(report.read_text())["images"] == 20
    picture = folder / "curves.png"
    picture.unlink()
    assert without_streams("analyze.py", "curves", str(folder)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_name_that_is_no_text_is_printed_with_its_bytes_written_out() -> None:
    code = "from configs.standard_streams import *; open_standard_streams(); print(os.fsdecode(b'caf\\xe9'), 'é')"
    command = [sys.executable, "-X", "utf8", "-c", code]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    assert printed.decode() == "caf\\udce9 é\n"


@pytest.mark.parametrize(
    "command",
    [["train.py", "--config", "none"], ["reproduce.py", "none"], ["evaluate.py", "none", "--batch-size", "0"]],
)
def test_refusals_keep_their_codes_without_a_console(command: List[str]) -> None:
    assert without_streams(*command) == 2
