"""analyze.py from the command line, in processes of its own: files, resumption, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import cbook

import analyze
import train
from models.random_net import RandomNetShape

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--width", "16", "--depth", "3", "--num-images", "8", "--image-size", "8"]


def start(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "analyze.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_random_net_writes_the_promised_json_and_picture_and_continues(tmp_path: Path) -> None:
    first = start("random-net", "--norm", "layer", "--seeds", "1", *TINY, "--out", str(tmp_path))
    assert first.returncode == 0, first.stderr
    before = read(tmp_path / "power.json")
    assert np.array(before["layers"]).shape == (1, 3, 4)
    assert "layer 3: P1" in first.stdout
    second = start("random-net", "--norm", "layer", "--seeds", "2", *TINY, "--out", str(tmp_path))
    assert second.returncode == 0, second.stderr
    after = read(tmp_path / "power.json")
    assert after["layers"][0] == before["layers"][0]
    assert np.array(after["layers"]).sum(axis=2) == pytest.approx(1, abs=1e-6)
    assert (tmp_path / "power.png").stat().st_size > 5000
    other = start("random-net", "--norm", "layer+pn", "--seeds", "1", *TINY, "--out", str(tmp_path))
    assert other.returncode == 2
    assert "use another --out" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random-net", "--norm", "laier"], "write batch, layer, instance"),
        (["random-net", "--norm", "group7"], "num_groups 7 does not divide"),
        (["random-net", "--norm", "layer", "--depth", "0"], "--depth 0 must be at least 1"),
        (["random-net", "--norm", "layer", "--images", "no/such/folder"], "is no photograph"),
        (["random-net", "--norm", "layer", "--activation", "rely"], "unknown activation 'rely'"),
        (["power", "--model", "resnet10t"], "write timm:NAME or torchvision:NAME"),
        (["power", "--run", "no/such/run"], "no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze.main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_several_norms_share_a_picture_and_have_a_folder_each(tmp_path: Path) -> None:
    assert (
        analyze.main(["random-net", "--norm", "batch", "layer+pn", *TINY, "--seeds", "1", "--out", str(tmp_path)]) == 0
    )
    assert read(tmp_path / "batch" / "power.json")["norm"] == "batch"
    assert read(tmp_path / "layer+pn" / "power.json")["norm"] == "layer+pn"
    assert (tmp_path / "power.png").exists()


def test_images_may_be_photographs(tmp_path: Path) -> None:
    photo = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    assert analyze.main(["random-net", "--norm", "layer", *TINY, "--images", photo, "--out", str(tmp_path)]) == 0
    assert "grace_hopper.jpg" in read(tmp_path / "power.json")["images"]


def test_power_of_all_checkpoints_of_a_run_is_what_training_logged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["data.num_train_images=128", "data.num_eval_images=40", "schedule.epochs=2", "run.power_every_epochs=1"]
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(run)]
    assert train.main([*arguments, *(word for setting in settings for word in ("--set", setting))]) == 0
    finished = start("power", "--run", str(run), "--num-images", "40")
    assert finished.returncode == 0, finished.stderr
    points = read(run / "power" / "power.json")["points"]
    logged = [json.loads(line) for line in (run / "power.jsonl").read_text().splitlines()]
    assert [point["name"] for point in points] == ["epoch 1.00", "epoch 2.00"]
    for point, record in zip(points, logged[1:]):
        for here, there in zip(point["layers"], record["layers"]):
            assert here["name"] == there["name"]
            # Pixels are scaled in another order of operations.
            assert here["power"] == pytest.approx(there["power"], rel=1e-3, abs=1e-6)
    with np.load(run / "power" / "channels.npz") as channels:
        per_channel = channels["epoch 2.00/norm"]
    assert per_channel.mean(axis=1) == pytest.approx(points[-1]["layers"][-1]["power"])
    one = start("power", "--run", str(run), "--step", "4", "--num-images", "41")
    assert one.returncode == 2
    assert "generated has 40 to evaluate on" in one.stderr


def test_power_of_a_timm_network_converted_and_not(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    arguments = ["power", "--model", "timm:resnet10t", "--image-size", "32", "--num-images", "8", "--batch-size", "4"]
    assert analyze.main([*arguments, "--form", "training", "--out", str(tmp_path / "bn")]) == 0
    assert analyze.main([*arguments, "--convert", "group8+pn", "--out", str(tmp_path / "gn")]) == 0
    plain, converted = (read(tmp_path / name / "power.json")["points"][0] for name in ("bn", "gn"))
    assert max(layer["power"][0] for layer in plain["layers"]) < 1e-3  # over batches of 4: P1 is that of batch means, 0
    assert [layer["name"] for layer in plain["layers"]] == [layer["name"] for layer in converted["layers"]]
    assert max(layer["power"][0] for layer in converted["layers"]) > 0.01


def test_plot_draws_one_panel_for_each_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = {"name": "norm1", "channels": 2, "power": [0.5, 0.0, 0.5, 0.0], "effective_channels": 1.0}
    points = [{"name": f"epoch {epoch}", "layers": [layer], "not_measured": {}} for epoch in (1, 2)]
    (tmp_path / "run.json").write_text(json.dumps({"points": points}))
    (tmp_path / "other.json").write_text("{}")
    assert analyze.main(["random-net", "--norm", "layer", *TINY, "--seeds", "1", "--out", str(tmp_path)]) == 0
    drawn: Any = []
    monkeypatch.setattr(analyze, "plot_power", lambda panels, path, **options: drawn.extend(panels))
    results, out = [str(tmp_path / "power.json"), str(tmp_path / "run.json")], ["--out", str(tmp_path / "plot.png")]
    assert analyze.main(["plot", *results, *out]) == 0
    assert [panel.title for panel in drawn] == ["LN", "epoch 2"]
    assert [panel.powers.shape for panel in drawn] == [(1, 3, 4), (2, 1, 4)]
    assert drawn[0].bound == pytest.approx([1 - RandomNetShape().bound(layer) for layer in (1, 2, 3)])
    capsys.readouterr()
    assert analyze.main(["plot", *results, *out, "--titles", "one"]) == 2
    assert "1 --titles for 2 results" in capsys.readouterr().err
    assert analyze.main(["plot", str(tmp_path / "other.json"), *out]) == 2
    assert "has neither layers nor points" in capsys.readouterr().err


def test_weights_of_a_file_are_used(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(7)
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.pt")
    arguments = ["power", "--model", "timm:resnet10t", "--image-size", "32", "--num-images", "4"]
    assert analyze.main([*arguments, "--out", str(tmp_path / "drawn")]) == 0
    assert analyze.main([*arguments, "--weights", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "given")]) == 0
    drawn, given = (read(tmp_path / name / "power.json")["points"][0]["layers"] for name in ("drawn", "given"))
    assert drawn[0]["power"] != given[0]["power"]


@pytest.mark.slow
def test_theory_writes_its_page(tmp_path: Path) -> None:
    finished = start("theory", "--out", str(tmp_path), "--width", "32", "--depth", "4", "--seeds", "1")
    assert finished.returncode == 0, finished.stderr
    page = (tmp_path / "theory.md").read_text()
    assert page.count("\n| ") == 31  # the head, 10 statements and 4 norms of 5 properties
    assert len(read(tmp_path / "theory.json")["statements"]) == 30
