"""The benchmarks themselves: each runs at toy sizes, writes what it promises, and would show a slow variant as slow."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
import torch
from torch import nn

from benchmarks import (
    data,
    growth,
    inference,
    layer,
    layer_cuda,
    loading,
    memory,
    networks,
    peers,
    protocol,
    report,
    step,
)
from benchmarks.networks import BATCH_NORM, CHANNELS_LAST_BFLOAT16, GNPN, GNPN_RECOMPUTE, NCHW_FLOAT32, NO_NORM
from benchmarks.protocol import Timing, measure
from benchmarks.results import write_results
from benchmarks.streaming import least_worthwhile
from datasets import pack

TINY = (
    networks.Workload("resnet8", 2, 8, NCHW_FLOAT32, 3),
    networks.Workload("resnet8", 2, 8, CHANNELS_LAST_BFLOAT16, 3),
)
TINY_SETTING = layer.Setting("tiny", ((2, 16, 4),), torch.float32, torch.contiguous_format, "relu")
TIMING_FIELDS = {"milliseconds", "ratio", "first_quartile", "third_quartile", "repetitions"}


pytestmark = pytest.mark.usefixtures("built_kernels")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of all benchmarks but the layer's and the GPU's."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        # What is tested is that the numbers arrive; a busy machine must not stop the tests.
        patch.setattr(protocol, "COPY_GUARD", math.inf)
        patch.setattr(protocol, "COPY_ELEMENTS", 1024)
        patch.setattr(step, "WORKLOADS", TINY)
        patch.setattr(memory, "WORKLOADS", TINY)
        patch.setattr(inference, "CASES", (("resnet8", 2, 8, 3),))
        patch.setattr(
            growth, "LAYER_VALUES", {"batch": (1, 2), "pixels": (64, 1024), "channels": (8, 16), "groups": (1, 8)}
        )
        patch.setattr(growth, "MIDDLE", {"batch": 1, "pixels": 64, "channels": 8, "groups": 4})
        patch.setattr(growth, "DEPTHS", (8, 20))
        patch.setattr(growth, "NETWORK_IMAGES", 2)
        patch.setattr(peers, "SETTINGS", (TINY_SETTING,))
        patch.setattr(nn.Module, "compile", lambda self: None)  # a minute of compiling tells nothing here
        arguments = ["--results", str(folder), "--repetitions", "2"]
        step.main(arguments)
        memory.main(arguments[:2])
        inference.main(arguments)
        growth.main(arguments)
        peers.main([*arguments, "--only", "tiny"])
    return folder


def read(folder: Path, name: str) -> Dict[str, Any]:
    content: Dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    assert set(content) == {"machine", "settings", "rows"}
    assert set(content["machine"]) == {"machine_class", "threads", "torch"}
    assert all("commit" in row for row in content["rows"])
    return content


def test_steps_have_a_timing_and_an_overhead_for_every_variant(results: Path) -> None:
    rows = read(results, "step")["rows"]
    assert [row["workload"] for row in rows] == [workload.name for workload in TINY]
    for row in rows:
        assert set(row["timings"]) == set(row["norm_overhead"]) == set(networks.VARIANTS)
        assert all(set(timing) == TIMING_FIELDS for timing in row["timings"].values())
        assert row["timings"][BATCH_NORM]["ratio"] == 1.0
        assert row["norm_overhead"][NO_NORM] == 0.0 and row["norm_overhead"][BATCH_NORM] == 1.0


def test_overhead_is_the_share_of_what_batch_norm_costs() -> None:
    def timing(milliseconds: float) -> Timing:
        return Timing(milliseconds, 0.0, 0.0, 0.0, 15)

    overheads = step.norm_overheads({BATCH_NORM: timing(10.0), NO_NORM: timing(6.0), GNPN: timing(7.0)})
    assert overheads == {BATCH_NORM: 1.0, NO_NORM: 0.0, GNPN: 0.25}


def test_recomputing_keeps_half_of_the_bytes_and_the_reference_twice_as_many(results: Path) -> None:
    rows = read(results, "memory")["rows"]
    for row in rows:
        ratios = {name: numbers["activation_ratio"] for name, numbers in row["variants"].items()}
        assert ratios[BATCH_NORM] == 1.0
        assert ratios[GNPN_RECOMPUTE] < 0.75 < ratios[GNPN] < 1.2 < ratios["GN+PN, reference"]
    assert rows[0]["variants"][BATCH_NORM]["weight_copy_bytes"] == 0  # float32 weights are saved themselves
    assert rows[1]["variants"][BATCH_NORM]["weight_copy_bytes"] > 0  # autocast's bfloat16 copies


def test_saved_bytes_are_those_counted_by_hand() -> None:
    workload = networks.Workload("resnet8", 2, 8, NCHW_FLOAT32, 3)
    float32 = 4
    images = 2 * 3 * 64 * float32
    # resnet8: stem and one block at 8x8x16; one at 4x4x32; one at 2x2x64. Norms: inputs and outputs are kept.
    at_8, at_4, at_2 = (2 * c * side * side * float32 for c, side in ((16, 8), (32, 4), (64, 2)))
    inputs = 3 * at_8 + 2 * at_4 + 2 * at_2  # two norms a block (a block's first has its input's size), and the last
    outputs = inputs - at_2  # pooling keeps no input of its own
    pooled, log_softmax = 2 * 64 * float32, 2 * 3 * float32
    batch_statistics = 2 * float32 * (3 * 16 + 2 * 32 + 2 * 64)
    saved = memory.measure_saved_bytes(workload, BATCH_NORM).activations
    rest = saved - (images + inputs + outputs + pooled + log_softmax + batch_statistics)
    # The last ReLU keeps its output, and cross-entropy two numbers and the labels.
    assert at_2 <= rest <= at_2 + 64


def test_inference_compares_with_folded_batch_norm(results: Path) -> None:
    (row,) = read(results, "inference")["rows"]
    assert row["timings"][inference.FOLDED_BATCH_NORM]["ratio"] == 1.0
    assert set(row["timings"]) == {BATCH_NORM, GNPN, inference.FOLDED_BATCH_NORM, inference.FOLDED_GNPN}


def test_growth_has_a_curve_and_an_exponent_for_every_quantity(results: Path) -> None:
    rows = read(results, "growth")["rows"]
    assert [row["quantity"] for row in rows] == ["batch", "pixels", "channels", "groups", "depth"]
    memory_of = {row["quantity"]: row["exponents"]["saved_bytes"] for row in rows}
    assert memory_of["pixels"][GNPN] > 0.7 and abs(memory_of["groups"][GNPN]) < 0.3
    assert set(memory_of["depth"]) == {BATCH_NORM, GNPN, GNPN_RECOMPUTE}


def test_the_growth_exponent_of_a_power_is_the_power() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert growth.growth_exponent(values, [3 * v**1.5 for v in values]) == pytest.approx(1.5)


def test_peers_are_all_timed(results: Path) -> None:
    (row,) = read(results, "peers")["rows"]
    assert set(row["geometric_mean"]) == set(row["shapes"][0]["timings"]) and len(row["geometric_mean"]) == 11


def test_without_a_gpu_the_gpu_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert layer_cuda.main(["--results", str(tmp_path)]) == 1
    assert "GPU: not measured" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_planted_slow_variant_shows_its_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(protocol, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def take(seconds: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    timings = measure({"fast": take(0.002), "slow": take(0.006)}, "fast", repetitions=5)
    assert timings["fast"].ratio == 1.0 and timings["slow"].repetitions == 5
    assert timings["slow"].ratio == pytest.approx(3.0) and timings["slow"].milliseconds == pytest.approx(6.0)


def test_real_work_done_twenty_times_is_measured_as_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "COPY_GUARD", math.inf)
    x = torch.randn(1 << 18)

    def work(times: int) -> None:
        for _ in range(times):
            x.exp()

    timings = measure({"once": lambda: work(1), "often": lambda: work(20)}, "once", repetitions=9)
    # Far below 20: another program may take the processor in either.
    assert timings["often"].ratio > 1.5


# ---- results, tables and plots --------------------------------------------------------------------------------------


def test_a_run_of_one_workload_keeps_the_rows_of_the_others(tmp_path: Path) -> None:
    write_results("step", {"repetitions": 15}, [{"workload": "a", "x": 1}, {"workload": "b", "x": 1}], folder=tmp_path)
    path = write_results("step", {"repetitions": 15}, [{"workload": "b", "x": 2}], folder=tmp_path)
    assert [(row["workload"], row["x"]) for row in json.loads(path.read_text())["rows"]] == [("a", 1), ("b", 2)]
    write_results("step", {"repetitions": 2}, [{"workload": "b", "x": 3}], folder=tmp_path)
    assert [row["x"] for row in json.loads(path.read_text())["rows"]] == [3]  # measured otherwise: not mixed


@pytest.fixture
def complete(results: Path, tmp_path: Path) -> Tuple[Path, Path]:
    """(results with those of the layer, a page with markers)."""
    shapes = [
        {"shape": [16, 64, 112, 112], "copy_bandwidth_share": 0.75},
        {"shape": [1, 2, 3, 3], "copy_bandwidth_share": None},
    ]
    layers = [{"setting": "nchw float32 relu", "geometric_mean": {"ours": 0.387}, "shapes": shapes}]
    content = {"machine": {}, "layers": layers, "proxy_statistics_us": {"relu": 21.7}}
    (results / "layer.json").write_text(json.dumps(content))
    timed = {"images_per_second": 601.4, "speed_ratio": 1.816, "first_quartile": 1.7, "third_quartile": 1.9}
    loaded = {"name": "loading processes: 1", "loader_alone": 480.2, "network_alone": 273.0, "together": 246.4}
    settings = {"width": 500, "height": 400, "quality": 90}
    rates = {"one thread": 1344.4, "0": 1301.0, "1": 1260.2}
    loaders = {
        "name": "224 px, shards",
        "batch": 32,
        "images_per_second": rates,
        "thread_ratio": {"0": 0.968, "1": 0.938},
    }
    write_results("data", settings, [{"name": "224 px, folder", **timed}, loaders, loaded], folder=results)
    page = tmp_path / "speed.md"
    page.write_text(f"# before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    return results, page


def write_report(complete: Tuple[Path, Path], plots: Path) -> str:
    folder, page = complete
    report.main(["--results", str(folder), "--page", str(page), "--plots", str(plots), "--write"])
    return page.read_text()


def test_writing_the_tables_and_plots_twice_changes_nothing(complete: Tuple[Path, Path], tmp_path: Path) -> None:
    first = write_report(complete, tmp_path / "plots")
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert write_report(complete, tmp_path / "plots") == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()} == drawn
    assert set(drawn) == {"bandwidth.svg", "ratios.svg", "growth.svg"}
    assert first.startswith("# before\n") and first.endswith("\nafter\n") and "\nold\n" not in first


def test_the_tables_hold_the_numbers_of_the_files(complete: Tuple[Path, Path], tmp_path: Path) -> None:
    text = write_report(complete, tmp_path)
    assert "| nchw float32 relu | 0.39 | 75-75 % |" in text
    assert "relu 22 us" in text and "GPU: not measured." in text
    assert "| 224 px, folder | 601 | 1.82 | 1.70-1.90 |" in text
    assert "| batch | one thread | loading processes: 0 | loading processes: 1 |" in text
    assert "| 224 px, shards | 32 | 1344 | 1301 (0.97) | 1260 (0.94) |" in text
    assert "loading processes: 1: 480 images/s alone, 246 while a network trains that could take 273." in text
    ratio = read(complete[0], "step")["rows"][0]["timings"][GNPN]["ratio"]
    assert f"| {TINY[0].name} | {GNPN} | {ratio:.2f} |" in text
    path = complete[0] / "step.json"
    changed = json.loads(path.read_text())
    original = path.read_text()
    changed["rows"][0]["timings"][GNPN]["ratio"] = 7.77
    path.write_text(json.dumps(changed))
    assert f"| {TINY[0].name} | {GNPN} | 7.77 |" in write_report(complete, tmp_path)
    path.write_text(original)


def test_a_missing_file_or_marker_is_named(complete: Tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(report.MissingResultError, match=r"layer.json is not there; run: python -m benchmarks.layer"):
        report.load_results(tmp_path)
    with pytest.raises(ValueError, match="once each"):
        report.between_markers("no markers", "x")
    incomplete = report.load_results(complete[0])
    incomplete["step"]["machine"].pop("torch")
    with pytest.raises(report.MissingResultError, match="'torch'"):
        report.tables(incomplete, "./run_benchmarks.sh")


# ---- images ---------------------------------------------------------------------------------------------------------


def test_every_way_of_loading_images_is_timed_beside_torchvisions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(protocol, "COPY_GUARD", math.inf)
    monkeypatch.setattr(data, "BATCH", 4)
    folder, shards = tmp_path / "folder", tmp_path / "shards"
    assert 20_000 < data.write_photos(folder, 8, quality=90) < 200_000
    pack.pack(folder, shards, shard_bytes=200_000, seed=0)
    rows = {row["name"]: row for row in data.time_one_core(folder, shards, 32, repetitions=2)}
    names = ("torchvision", "folder", "shards", "folder, Pillow", "folder, whole")
    assert set(rows) == {f"32 px, {name}" for name in names}
    assert rows["32 px, torchvision"]["speed_ratio"] == 1.0
    assert min(row["speed_ratio"] for row in rows.values()) > 0
    train = data.open_ours("image_shards", shards, 32).train
    training = loading.time_training("32 px", train, 4, workers=1)
    assert min(training[name] for name in ("loader_alone", "network_alone", "together")) > 0


def test_loaders_are_timed_beside_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "WORKERS", (0, 2))
    train = loading.small_images(channels=3, side=8, padding=1)
    assert train[1, 3][0].shape == (3, 8, 8)
    row = loading.time_loaders("tiny", train, batch=16, number=64, repetitions=2)
    assert set(row["images_per_second"]) == {"one thread", "0", "2"} and set(row["thread_ratio"]) == {"0", "2"}
    assert min(*row["images_per_second"].values(), *row["thread_ratio"].values()) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_only_batches_of_a_loader_under_way_count(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    now = [0.0]
    monkeypatch.setattr(loading, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    seen: List[int] = []

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        seen.append(len(images))
        now[0] += 100.0 if len(seen) <= 1 + 2 * workers else 0.5  # the first are slow

    train = loading.small_images(channels=1, side=4, padding=0)
    assert loading.time_loader(train, 8, 40, workers, step) == 16
    assert sum(seen[1 + 2 * workers :]) >= 40


@pytest.mark.parametrize(
    "ratios, expected",
    [
        ({1: 0.9, 2: 0.9}, 1),
        ({1: 0.9, 2: 1.0, 4: 0.97, 8: 0.5}, 4),  # a gain below a loss does not count
        ({1: 0.5, 2: 0.98}, None),
    ],
)
def test_streaming_begins_where_every_larger_output_gains(ratios: Dict[int, float], expected: Optional[int]) -> None:
    assert least_worthwhile(ratios) == expected
