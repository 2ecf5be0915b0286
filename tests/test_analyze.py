"""analyze.py from the command line, in processes of its own: files, resumption, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import cbook

import analyze
import train
from analysis.images import standardized
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
        timeout=600,
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
        (["random-net", "--norm", "layer", "--images", "no/such/folder"], "is not a photograph"),
        (["random-net", "--norm", "layer", "--activation", "rely"], "unknown activation 'rely'"),
        (["random-net", "--norm", "layer", "--images", "fashion_mnist", "--image-size", "29"], "use --image-size 28"),
        (["power", "--model", "resnet10t"], "--model resnet10t: write timm:NAME or torchvision:NAME"),
        (["power", "--model", "timm:resnet10x"], "Unknown model (resnet10x); timm.list_models() gives all names"),
        (["power", "--model", "torchvision:resnet10x"], "torchvision.models.list_models() gives all names"),
        (["power", "--model", "torchvision:alexnet", "--num-images", "2"], "it has none that is a module"),
        (["power", "--model", "torchvision:resnet18", "--weights", "no/such.pt"], "no/such.pt"),
        (["power", "--model", "torchvision:resnet18", "--step", "3"], "--step has no effect with --model"),
        (["power", "--model", "torchvision:resnet18", "--convert", "laier"], "write batch, layer, instance"),
        (["power", "--run", "no/such/run"], "is not a run folder: it has no config.yaml"),
        (["power", "--run", "no/such/run", "--image-size", "32"], "--image-size has no effect with --run"),
        (["theory", "--identity-seeds", "1"], "use 2 or more"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = 4 if message.endswith(".pt") else 2  # a checkpoint, as for the other commands
    assert analyze.main([*arguments, "--out", str(tmp_path)]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["random-net", "--norm", "layer", "--depth", "0"],
        ["random-net", "--norm", "layer", "--seeds", "some"],
        ["power", "--model", "timm:resnet10t", "--num-images", "-4"],
        ["power", "--model", "timm:resnet10t", "--batch-size", "0"],
        ["theory", "--width", "1.5"],
    ],
)
def test_a_count_below_one_is_refused_by_its_name(
    arguments: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        analyze.main([*arguments, "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert f"argument {arguments[-2]}: {arguments[-1]} is not a whole number of 1 or more" in capsys.readouterr().err


def test_a_network_that_cannot_run_on_the_images_is_told_with_their_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["power", "--model", "torchvision:densenet121", "--num-images", "2", "--image-size", "8"]
    assert analyze.main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "densenet121 could not run on images of shape (2, 3, 8, 8)" in error
    assert "Give the --image-size that it needs" in error


def test_ctrl_c_keeps_the_finished_seeds_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = ["random-net", "--norm", "layer", *TINY, "--out", str(tmp_path), "--seeds"]
    # Whoever ignores the signal, as a shell's background job does, starts programs that ignore it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "analyze.py", *command, "5000"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, handler)
    try:
        deadline = time.monotonic() + 600
        while not (tmp_path / "power.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=600)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("stopped: finished seeds are kept")
    assert "Traceback" not in error
    before = read(tmp_path / "power.json")["layers"]
    assert 1 <= len(before) < 5000
    more = len(before) + 1
    assert analyze.main([*command, str(more)]) == 0
    assert read(tmp_path / "power.json")["layers"][:-1] == before


def test_several_norms_share_a_picture_and_have_a_folder_each(tmp_path: Path) -> None:
    assert (
        analyze.main(["random-net", "--norm", "batch", "layer+pn", *TINY, "--seeds", "1", "--out", str(tmp_path)]) == 0
    )
    assert read(tmp_path / "batch" / "power.json")["norm"] == "batch"
    assert read(tmp_path / "layer+pn" / "power.json")["norm"] == "layer+pn"
    assert (tmp_path / "power.png").exists()


def test_each_seed_has_fashion_mnist_images_of_its_own() -> None:
    both = analyze.fashion_mnist_images(6, 20, 0)
    second = analyze.fashion_mnist_images(3, 20, 1)
    assert torch.allclose(second, standardized(both[3:]), atol=1e-5)


def test_images_may_be_photographs(tmp_path: Path) -> None:
    photo = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    assert analyze.main(["random-net", "--norm", "layer", *TINY, "--images", photo, "--out", str(tmp_path)]) == 0
    assert "grace_hopper.jpg" in read(tmp_path / "power.json")["images"]


def test_power_of_all_checkpoints_of_a_run_is_what_training_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = ["data.num_train_images=128", "data.num_eval_images=40", "schedule.epochs=2", "run.power_every_epochs=1"]
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(run)]
    assert train.main([*arguments, *(word for setting in settings for word in ("--set", setting))]) == 0
    finished = start("power", "--run", str(run))
    assert finished.returncode == 0, finished.stderr
    results = read(run / "power" / "power.json")
    assert (results["title"], results["images"]) == ("run", 40)  # as many as training logged
    points = results["points"]
    logged = [json.loads(line) for line in (run / "power.jsonl").read_text().splitlines()]
    assert [point["name"] for point in points] == ["step 2, epoch 1.00", "step 4, epoch 2.00"]
    for point, record in zip(points, logged[1:]):
        for here, there in zip(point["layers"], record["layers"]):
            assert here["name"] == there["name"]
            # Pixels are scaled in another order of operations.
            assert here["power"] == pytest.approx(there["power"], rel=1e-3, abs=1e-6)
    with np.load(run / "power" / "channels.npz") as channels:
        per_channel = channels["step 4, epoch 2.00/norm"]
    assert per_channel.mean(axis=1) == pytest.approx(points[-1]["layers"][-1]["power"])
    one = start("power", "--run", str(run), "--step", "4", "--num-images", "41")
    assert one.returncode == 2
    assert "generated has 40 to evaluate on" in one.stderr
    assert analyze.main(["power", "--run", str(run), "--step", "4", "--out", str(tmp_path / "one")]) == 0
    assert read(tmp_path / "one" / "power.json")["points"] == points[1:]
    capsys.readouterr()
    assert analyze.main(["power", "--run", str(run), "--step", "3"]) == 2
    assert "--step 3: this run has checkpoints of 2, 4" in capsys.readouterr().err
    (run / "checkpoints" / "step_00000004.pt").write_bytes(b"torn")
    assert analyze.main(["power", "--run", str(run), "--out", str(tmp_path / "torn")]) == 4
    assert "step_00000004.pt" in capsys.readouterr().err
    assert read(tmp_path / "torn" / "power.json")["points"] == points[:1]  # what was measured before it
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    assert analyze.main(["power", "--run", str(run)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_the_fit_of_every_proxy_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(run)]
    for setting in ("data.num_train_images=128", "data.num_eval_images=40", "schedule.epochs=1"):
        arguments += ["--set", setting]
    assert train.main(arguments) == 0
    assert analyze.main(["proxy", "--run", str(run), "--refit"]) == 0
    output = capsys.readouterr().out
    assert "stages.0.0.norm1" in output
    assert "with every proxy refitted" in output
    (point,) = read(run / "proxy" / "proxy.json")["points"]
    assert point["name"] == "step 2, epoch 1.00"
    assert len(point["layers"]) == len(point["refitted"]) == 7
    for fit in point["layers"]:
        # The terms of one channel add up, so their root mean squares cannot fall short of it.
        assert fit["left"] <= fit["balance"] + fit["shape"] + fit["parameters"] + 1e-6
        assert 0 < fit["lowest_deviation"] < 1 < fit["highest_deviation"]
    assert analyze.main(["proxy", "--model", "torchvision:resnet18", "--num-images", "2", "--out", str(tmp_path)]) == 2
    assert "no norm of this network has Proxy Normalization" in capsys.readouterr().err


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
    (tmp_path / "run.json").write_text(json.dumps({"title": "mine", "points": points}))
    assert analyze.main(["random-net", "--norm", "layer", *TINY, "--seeds", "1", "--out", str(tmp_path)]) == 0
    drawn: Any = []
    monkeypatch.setattr("analysis.power_plot.plot_power", lambda panels, path, **options: drawn.extend(panels))
    results, out = [str(tmp_path / "power.json"), str(tmp_path / "run.json")], ["--out", str(tmp_path / "plot.png")]
    assert analyze.main(["plot", *results, *out]) == 0
    assert [panel.title for panel in drawn] == ["LN", "mine"]
    assert [panel.powers.shape for panel in drawn] == [(1, 3, 4), (2, 1, 4)]
    assert drawn[0].bound == pytest.approx([1 - RandomNetShape().bound(layer) for layer in (1, 2, 3)])
    capsys.readouterr()
    assert analyze.main(["plot", *results, *out, "--titles", "one"]) == 2
    assert "1 --titles for 2 results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds list, expected one JSON object"),
        ("{}", "can be drawn: 'points' is missing"),
        ('{"points": [{}]}', "'layers' is missing"),
        ('{"points": [], "title": ""}', "0 points, of different or of no norms"),
        ('{"norm": "layer", "layers": [], "shape": {}}', "are not (seeds, 20 layers, 4)"),
        ('{"norm": "layer", "layers": [], "shape": {"colour": 1}}', "unexpected keyword argument 'colour'"),
    ],
)
def test_what_is_no_power_json_is_refused_by_its_name(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "power.json").write_text(content)
    assert analyze.main(["plot", str(tmp_path / "power.json"), "--out", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path / "power.json") in error
    assert not (tmp_path / "x.png").exists()


def test_weights_of_a_file_are_used(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(7)
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.pt")
    arguments = ["power", "--model", "timm:resnet10t", "--image-size", "32", "--num-images", "4"]
    assert analyze.main([*arguments, "--out", str(tmp_path / "drawn")]) == 0
    assert analyze.main([*arguments, "--weights", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "given")]) == 0
    drawn, given = (read(tmp_path / name / "power.json")["points"][0]["layers"] for name in ("drawn", "given"))
    assert drawn[0]["power"] != given[0]["power"]


def test_theory_writes_its_page(tmp_path: Path) -> None:
    small = ["--width", "32", "--depth", "4", "--seeds", "1", "--identity-width", "32", "--identity-seeds", "2"]
    finished = start("theory", "--out", str(tmp_path), *small)
    assert finished.returncode == 0, finished.stderr
    page = (tmp_path / "theory.md").read_text()
    assert page.count("\n| ") == 35  # the head, 14 statements and 4 norms of 5 properties
    assert len(read(tmp_path / "theory.json")["statements"]) == 34
