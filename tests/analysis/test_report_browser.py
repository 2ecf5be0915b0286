"""The report page in a real browser: laid out at the width of a phone and of a screen, light and dark."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import pytest
from made_runs import write_result

from analysis.comparison.written import Question, answer
from analysis.report.page import write_page

WIDTHS = (390, 1280)
# Shows the page in frames of given widths and writes down what the browser made of it.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body><pre id="result"></pre><script>
addEventListener("load", () => {
  const results = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    return {
      width: frame.clientWidth,
      overflow: root.scrollWidth - root.clientWidth,
      scrolling: [...page.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth).length,
      pictures: [...page.images].map(image => [image.naturalWidth, image.currentSrc === image.src]),
      fetched: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 40)),
      ground: getComputedStyle(page.body).backgroundColor,
      bold: page.querySelectorAll("td strong").length,
    };
  });
  document.getElementById("result").textContent = JSON.stringify(results);
});
</script>FRAMES</body>"""


def browser() -> str:
    """Return a Chromium; tests are skipped without one, but not in continuous integration, which installs it."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    if os.environ.get("CI") == "true":
        pytest.fail("no chromium, and CI is true: `make browser` comes before the tests")
    pytest.skip("no chromium; `make browser` installs it")


def shown(folder: Path, *options: str) -> List[Dict[str, Any]]:
    """Return what the browser says of folder/index.html in each width; its console must stay silent."""
    frames = "".join(
        f'<iframe src="index.html" style="width:{width}px;height:900px;border:0"></iframe>' for width in WIDTHS
    )
    (folder / "probe.html").write_text(PROBE.replace("FRAMES", frames))
    done = subprocess.run(
        [
            browser(),
            "--headless",
            "--no-sandbox",  # which root has not
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--allow-file-access-from-files",  # the frames are files
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}",
            *options,
            "--dump-dom",
            (folder / "probe.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console
    result = re.search(r'<pre id="result">(.+?)</pre>', done.stdout, re.DOTALL)
    assert result is not None, done.stdout[:2000]
    shown_frames: List[Dict[str, Any]] = json.loads(html.unescape(result[1]))
    return shown_frames


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Return a page with wide tables, long names, all pictures but power, and one clear difference."""
    grid = tmp_path / "grid"
    for seed in range(6):
        for batch in (2, 8, 32, 128):
            top1 = 0.8 - 0.2 / batch + batch * (seed + 1) % 11 / 1000
            settings = {"norm__name": "batch", "norm__num_groups": None, "batch__norm_batch_size": batch}
            write_result(grid, f"batch_norm_over_{batch}_images_at_a_time", seed, top1, **settings)
        write_result(grid, "gn8_with_an_unbreakably_long_name_that_is_wider_than_a_phone", seed, 0.9 + seed**2 / 1000)
    question = Question(
        (grid,), metrics=("top1", "loss"), against="batch_norm_over_2_images_at_a_time", setting="batch.norm_batch_size"
    )
    write_page(tmp_path / "index.html", "A report", answer(question))
    return tmp_path


def test_the_page_fits_a_phone_and_a_screen_and_fetches_nothing(page: Path) -> None:
    frames = shown(page)
    assert [frame["width"] for frame in frames] == list(WIDTHS)
    for frame in frames:
        assert frame["overflow"] == 0
        assert len(frame["pictures"]) == 3
        assert all(width > 300 and is_light for width, is_light in frame["pictures"])
        assert [name for name in frame["fetched"] if not name.startswith("data:")] == []
        assert frame["ground"] == "rgb(255, 255, 255)"
        assert frame["bold"] == 8
    assert frames[0]["scrolling"] >= 6  # three tables and three pictures are wider than a phone


def test_a_dark_page_has_the_pictures_for_dark_ground(page: Path) -> None:
    for frame in shown(page, "--blink-settings=preferredColorScheme=0"):
        assert frame["ground"] == "rgb(22, 22, 22)"
        assert [is_light for _, is_light in frame["pictures"]] == [False] * 3
