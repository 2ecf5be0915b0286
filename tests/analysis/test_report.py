"""The report page as HTML: what is in it, that nothing in it is fetched, and that names cannot become markup."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Dict, List, Tuple

from made_runs import write_result, write_run

from analysis.comparison.written import Question, answer
from analysis.report.page import render_page, settings_table, speed_table

HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }} $\\frac$"


class Elements(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: List[Tuple[str, Dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: "list[tuple[str, str | None]]") -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path, title: str = "Made runs") -> str:
    for seed in range(6):
        write_result(folder, "bn", seed, 0.8 + seed / 100)
        write_result(folder, "gn", seed, 0.82 + seed**2 / 1000, norm__proxy=True)
    return render_page(title, answer(Question((folder,), metrics=("top1", "loss"), against="bn")))


def test_the_page_has_tables_pictures_speed_and_runs(tmp_path: Path) -> None:
    html = page_of(tmp_path)
    page = Elements(html)
    assert "12 runs in 2 rows" in page.text
    assert "+0.42 [" in page.text  # differences of 2, 1.1, .4, -.1, -.4, -.5 points
    assert page.text.count("difference to bn") == 2
    assert "norm.proxy" in page.text
    assert "100 to 100" in page.text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2
    assert all(len(each["alt"]) > 40 for each in pictures)


def test_everything_is_inside_the_page_and_only_its_own_styles_may_run(tmp_path: Path) -> None:
    page = Elements(page_of(tmp_path))
    addresses = [
        attributes[key] for _, attributes in page.tags for key in ("src", "href", "srcset") if key in attributes
    ]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    policy = [attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for address in addresses:
        if "base64," in address:
            picture = base64.b64decode(address.partition("base64,")[2]).decode()
            assert not re.search(r"<script|(href|src)=\"(?!#)", picture)


def test_names_of_runs_and_the_title_are_text_wherever_they_stand(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0, 0.5, summary={"experiment": HOSTILE, "device": HOSTILE}, model__name=HOSTILE)
    write_run(tmp_path / "b", 0, 0.5, summary={"experiment": "plain"}, model__name="resnet8")
    html = render_page(HOSTILE, answer(Question((tmp_path,), against=HOSTILE)))
    page = Elements(html)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.text.count(HOSTILE) >= 5
    assert any(HOSTILE in attributes.get("alt", "") for tag, attributes in page.tags if tag == "img")


def test_settings_that_differ_are_listed_with_all_values_of_a_pooled_row(tmp_path: Path) -> None:
    for seed, rate in enumerate((0.1, 0.2)):
        write_result(tmp_path, "gn", seed, 0.5, optimizer__learning_rate=rate)
        write_result(tmp_path, "ln", seed, 0.5, norm__name="layer", norm__num_groups=None)
    table = settings_table(answer(Question((tmp_path,), group_by=("name",))).rows)
    assert table.header == ("setting", "gn", "ln")
    assert table.rows == (
        ("norm.name", "group", "layer"),
        ("norm.num_groups", "8", "null"),
        ("optimizer.learning_rate", "0.1, 0.2", "0.1"),
    )


def test_rows_that_logged_no_speed_are_not_in_its_table(tmp_path: Path) -> None:
    for seed, speed in enumerate((100.0, 300.0)):
        write_run(tmp_path / f"a{seed}", seed, 0.5, summary={"images_per_second": speed, "machine": "2 cores"})
    write_run(tmp_path / "b", 0, 0.5, summary={"images_per_second": None}, norm__proxy=True)
    table = speed_table(answer(Question((tmp_path,))).rows)
    assert table.rows == (("GN8", "200", "100 to 300", "2", "2 cores"),)
