"""The picture of a run: what its lines hold, and files that cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import matplotlib.image
import numpy
import pytest
from matplotlib.axes import Axes

from analysis.curves import plot_curves
from analysis.power_plot import plot_power_log

Line = Tuple[List[float], List[float]]


def record(split: str, epoch: float, loss: Any, top1: float) -> Dict[str, Any]:
    return {"split": split, "step": int(4 * epoch), "epoch": epoch, "loss": loss, "top1": top1}


def write(path: Path, *records: Dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def drawn_lines(monkeypatch: pytest.MonkeyPatch) -> List[Line]:
    """Return what is handed to matplotlib from here on, in order."""
    lines: List[Line] = []
    plot = Axes.plot

    def recording_plot(axes: Axes, x: List[float], y: List[float], **style: Any) -> Any:
        lines.append((x, y))
        return plot(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", recording_plot)
    return lines


@pytest.mark.parametrize(
    "line",
    ["[]", "1", "null", '{"split": "eval"}', '{"split": "eval", "epoch": 1, "loss": "1", "top1": []}']
    + [json.dumps(record("eval", 1, 10**400, 1)), json.dumps({**record("eval", 1, 1, 1), "epoch": {}})],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    metrics = write(tmp_path / "metrics.jsonl", record("eval", 1, 1, 1), record("eval", 2, 1, 1))
    metrics.write_text(line + "\n" + metrics.read_text())
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is not a metrics record"):
        plot_curves(metrics, tmp_path / "curves.png")


@pytest.mark.parametrize(
    "layers", [None, [], [{}], [{"power": [1, 2]}], [{"power": "abcd"}], [{"power": [10**400] * 4}]]
)
def test_a_record_that_is_no_power_decomposition_is_told(tmp_path: Path, layers: Any) -> None:
    power = write(tmp_path / "power.jsonl", {"split": "power", "epoch": 1, "layers": layers})
    with pytest.raises(ValueError, match=r"power\.jsonl has a record that is no power decomposition"):
        plot_power_log(power, tmp_path / "power.png")


def test_curves_draw_loss_and_percent_of_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = write(
        tmp_path / "metrics.jsonl",
        record("train", 0.5, 2.0, 0.25),
        record("train", 1.0, 1.0, 0.5),
        record("eval", 1.0, 1.5, 0.375),
    )
    lines = drawn_lines(monkeypatch)
    plot_curves(metrics, tmp_path / "curves.png")
    assert lines == [
        ([0.5, 1.0], [2.0, 1.0]),
        ([0.5, 1.0], [25.0, 50.0]),
        ([1.0], [1.5]),
        ([1.0], [37.5]),
    ]
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    assert picture.shape[:2] == (600, 1500)
    assert picture[..., :3].min() < 0.5  # something is drawn


def test_a_loss_that_was_not_finite_leaves_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = write(tmp_path / "metrics.jsonl", record("eval", 1.0, None, 0.5), record("eval", 2.0, 1.0, 0.5))
    lines = drawn_lines(monkeypatch)
    plot_curves(metrics, tmp_path / "curves.png")
    numpy.testing.assert_array_equal(lines[0][1], [numpy.nan, 1.0])


def test_a_torn_last_line_is_passed_over_and_a_torn_middle_line_is_an_error(tmp_path: Path) -> None:
    metrics = write(tmp_path / "metrics.jsonl", record("eval", 1.0, 2.0, 0.5))
    whole = metrics.read_text()
    metrics.write_text(whole + whole[:20])
    plot_curves(metrics, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
    metrics.write_text(whole[:20] + "\n" + whole)
    with pytest.raises(ValueError, match="line 1 is not a metrics record"):
        plot_curves(metrics, tmp_path / "curves.png")


def test_a_run_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no record yet"):
        plot_curves(write(tmp_path / "metrics.jsonl"), tmp_path / "curves.png")
