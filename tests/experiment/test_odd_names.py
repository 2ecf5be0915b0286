"""A run whose names are of bytes that are no text, or hold what other programs take for more than a name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import evaluate
import train
from analyze import main as analyze
from configs import find_config, load_config
from configs.standard_streams import open_standard_streams

FEW = ["--device", "cpu", "--set", "data.num_train_images=64", "--set", "data.num_eval_images=10"]
FEW += ["--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0", "--set", "run.csv=true"]
FEW += ["--set", "run.evaluate_training_images=0"]


def test_a_run_of_odd_names_is_whole_and_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The names are those of Latin-1, of a formula, of two lines, of HTML, and one that commands a terminal."""
    open_standard_streams()  # as every command does
    name = os.fsdecode(b"caf\xe9 $\\frac$ \n<b>\x1b[2J")
    config, folder, page = tmp_path / f"{name}.yaml", tmp_path / f"run {name}", tmp_path / f"page {name}"
    shutil.copy(find_config("generated_smoke"), config)
    assert train.main(["--config", str(config), *FEW, "--output-dir", str(folder)]) == 0
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert json.loads((folder / "summary.json").read_text())["experiment"] == name
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert load_config(str(folder / "config.yaml")).run.output_dir == str(folder)
    assert train.main(["--config", str(config), *FEW, "--output-dir", str(folder), "--resume"]) == 0
    assert (
        evaluate.main([str(folder), "--out", str(tmp_path / f"{name}.json"), "--picture", str(tmp_path / "c.png")]) == 0
    )
    assert json.loads((tmp_path / f"{name}.json").read_text())["images"] == 10
    assert analyze(["curves", str(folder)]) == 0
    capsys.readouterr()
    # a table has no place for a name that is not one line of text
    assert analyze(["report", str(folder), "--out", str(page)]) == 2
    assert "is not one line of text" in capsys.readouterr().err
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "experiment": "plain <b>"}))
    assert analyze(["report", str(folder), "--out", str(page)]) == 0
    html = (page / "index.html").read_text(encoding="utf-8")
    assert "<b>" not in html and "plain &lt;b&gt;" in html and "caf\\udce9" in html
