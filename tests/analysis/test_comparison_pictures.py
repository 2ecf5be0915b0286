"""Pictures of compared rows: what is handed to matplotlib, and the words beside it."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np
import pytest
from made_runs import write_result, write_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.comparison.pictures.against_setting import series_of
from analysis.comparison.pictures.picture import DARK, LIGHT, PAPER, Picture
from analysis.comparison.written import Answer, Question, answer
from analysis.results_file import ResultsError

NORM_BATCH = "batch.norm_batch_size"


def drawn(picture: Picture) -> Figure:
    figure = Figure()
    FigureCanvasAgg(figure)
    picture.draw(figure)
    return figure


def small_batch(folder: Path, at_two: Optional[float] = 0.5, reestimated: bool = True) -> Answer:
    """BN at normalization batches of 2 and 8 with three seeds, and GN8 beside it."""
    for seed in range(3):
        for batch, top1 in ((8, 0.8), (2, at_two)):
            summary = {"test_reestimated": {"top1": 0.75 + seed / 100, "loss": 1.0}} if reestimated else {}
            value = None if top1 is None else top1 + seed / 100
            settings = {"norm__name": "batch", "norm__num_groups": None, "batch__norm_batch_size": batch}
            write_result(folder, f"bn{batch}", seed, value, summary=summary, **settings)
        write_result(folder, "gn8", seed, 0.9 + seed / 100)
    return answer(Question((folder,), setting=NORM_BATCH))


def test_the_batch_picture_has_a_line_over_norm_batches_one_of_reestimated_statistics_and_a_level(
    tmp_path: Path,
) -> None:
    picture = small_batch(tmp_path).pictures["setting"]
    (axes,) = drawn(picture).axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["BN", "BN, statistics re-estimated", "GN8 (drawn across)"]
    lines = {line.get_label(): line for line in axes.get_lines()}
    # The two lines are moved apart by 5 %, so that their whiskers are seen.
    assert list(lines["BN"].get_xdata()) == pytest.approx([2, 8], rel=0.03)
    assert list(lines["BN"].get_ydata()) == pytest.approx([49, 19])
    assert list(lines["BN, statistics re-estimated"].get_ydata()) == pytest.approx([24, 24])
    assert list(lines["GN8 (drawn across)"].get_ydata()) == pytest.approx([9, 9])
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "normalization batch (images)"
    assert axes.get_ylabel() == "test error (%)"
    assert "95 % intervals" in axes.get_legend().get_title().get_text()
    assert "2: 49.00 (48.22 to 49.78), 8: 19.00" in picture.alt


def test_a_row_that_diverged_has_no_point_and_the_words_say_so(tmp_path: Path) -> None:
    picture = small_batch(tmp_path, at_two=None, reestimated=False).pictures["setting"]
    (axes,) = drawn(picture).axes
    (line,) = [line for line in axes.get_lines() if line.get_label() == "BN"]
    assert list(line.get_ydata()) == pytest.approx([19])
    assert "BN: 2: has no mean, 8: 19.00" in picture.alt


def test_a_setting_in_which_no_rows_differ_or_that_is_no_number_is_refused(tmp_path: Path) -> None:
    comparison = small_batch(tmp_path).comparisons[0]
    with pytest.raises(ResultsError, match=r"--x model\.width: no rows of one norm differ in it"):
        series_of(comparison, "model.width")
    with pytest.raises(ResultsError, match=r"--x norm\.name: bn2 has 'batch'; numbers can be drawn"):
        series_of(comparison, "norm.name")
    with pytest.raises(ResultsError, match=r"bn2: its configurations have no model\.wide"):
        series_of(comparison, "model.wide")


def test_bars_begin_at_zero_and_have_the_seeds_as_dots(tmp_path: Path) -> None:
    picture = small_batch(tmp_path, at_two=None).pictures["bars"]
    (axes,) = drawn(picture).axes
    bars: List[Tuple[float, float]] = [(patch.get_x(), patch.get_width()) for patch in axes.patches]  # type: ignore[attr-defined]
    assert bars == [(0, pytest.approx(19)), (0, pytest.approx(9))]
    assert axes.get_xlim()[0] == 0
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bn2 (no mean)", "bn8", "gn8"]
    dots = [list(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "."]
    assert dots == [[], pytest.approx([20, 19, 18]), pytest.approx([10, 9, 8])]


def test_bars_of_every_column_are_wholly_in_view(tmp_path: Path) -> None:
    for column, top1 in (("easy", 0.9), ("hard", 0.3)):
        write_result(tmp_path, "bn", 0, top1, column=column)
    panels = drawn(answer(Question((tmp_path,))).pictures["bars"]).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["easy", "hard"]
    for axes in panels:
        assert all(patch.get_width() <= axes.get_xlim()[1] for patch in axes.patches)  # type: ignore[attr-defined]


def test_learning_curves_have_the_mean_and_a_band_from_least_to_greatest(tmp_path: Path) -> None:
    for seed, top1 in enumerate((0.5, 0.7)):
        write_run(tmp_path / str(seed), seed, top1)
    picture = answer(Question((tmp_path,))).pictures["curves"]
    error, loss = drawn(picture).axes
    (line,) = error.get_lines()
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == pytest.approx([90, 40])
    band = error.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(30), pytest.approx(90))
    assert list(loss.get_lines()[0].get_ydata()) == pytest.approx([1.9, 1.4])
    assert loss.get_legend().get_texts()[0].get_text() == "resnet8, GN8 (2 seeds)"
    assert picture.alt.endswith("resnet8, GN8: test error 40.0 % (epoch 2).")


def test_more_than_six_rows_get_panels_of_their_own(tmp_path: Path) -> None:
    for width in range(8, 16):
        write_run(tmp_path / str(width), 0, 0.5, model__width=width)
    figure = drawn(answer(Question((tmp_path,))).pictures["curves"])
    assert [len(axes.get_lines()) for axes in figure.axes] == [6, 6, 2, 2]


def test_power_is_the_mean_over_seeds_of_rows_that_measured_it(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0, 0.5, power=(0.2, 0.4))
    write_run(tmp_path / "b", 1, 0.5, power=(0.4, 0.8))
    write_run(tmp_path / "c", 0, 0.5, norm__proxy=True)
    picture = answer(Question((tmp_path,))).pictures["power"]
    assert picture.alt == "Power plots. GN8: P1 mean 0.450, largest 0.600."
    (axes,) = drawn(picture).axes
    p1 = axes.collections[0].get_paths()[0].vertices
    assert p1[:, 1].max() == pytest.approx(0.6)


def test_a_picture_is_the_same_bytes_each_time_and_other_colours_on_dark_ground(tmp_path: Path) -> None:
    for picture in small_batch(tmp_path / "grid").pictures.values():
        assert picture.svg(LIGHT) == picture.svg(LIGHT)
        assert LIGHT.ink.encode() in picture.svg(LIGHT)
        assert LIGHT.ink.encode() not in picture.svg(DARK)
        drawn_dark, line_colours = picture.svg(DARK).decode(), [colour.lower() for colour in DARK.lines]
        assert any(colour in drawn_dark for colour in line_colours)
        path = picture.save(tmp_path)
        assert path.read_bytes() == picture.svg(PAPER)
        assert picture.is_saved(path)


def test_a_picture_of_other_numbers_is_not_taken_for_this_one(tmp_path: Path) -> None:
    before = small_batch(tmp_path / "grid").pictures["bars"]
    path = before.save(tmp_path)
    after = small_batch(tmp_path / "grid", at_two=0.51).pictures["bars"]
    assert before.is_saved(path)
    assert not after.is_saved(path)
    assert not after.is_saved(tmp_path / "none.svg")


def test_colours_differ_in_grey_or_in_dash(tmp_path: Path) -> None:
    for theme in (LIGHT, DARK):
        assert len(set(theme.lines)) == 6
        ground = 0.0 if theme is DARK else 1.0
        channels = [np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]) for colour in theme.lines]
        grey = [float(0.2126 * r + 0.7152 * g + 0.0722 * b) for r, g, b in channels]
        assert all(abs(value - ground) > 0.25 for value in grey)
