"""What the survey of conversions says of small networks whose norms are known."""

import json
from pathlib import Path
from typing import Any, Callable, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import analyze
from analysis.conversion.page import page
from analysis.conversion.survey import Candidate, Surveyed, survey
from analysis.conversion.watch import PairWatch


class Block(nn.Module):
    """Four norms: before a function, before dropout and a module, before a sum, and before two uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.BatchNorm2d(8) for _ in range(4))
        self.drop, self.act = nn.Dropout(0.2), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x), inplace=True)
        y = self.act(self.drop(self.b(y)))
        y = self.c(y) + y
        z = self.d(y)
        return F.silu(z) * z


class OnValues(Block):
    """Its forward looks at values, so that no trace goes through it."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if x.shape[0] > 100 or y.sum() < 1e9 else -y


class KeepsBatchNorm(Block):
    def __init__(self) -> None:
        super().__init__()

        class OwnBatchNorm(nn.BatchNorm2d):
            pass

        self.a = OwnBatchNorm(8)


def candidate(build: Callable[[], nn.Module], shape: Tuple[int, ...] = (8, 6, 6)) -> Candidate:
    return Candidate("made", "blocks", build.__name__, build, shape)


def test_pairs_are_seen_while_the_network_runs() -> None:
    model = Block().eval()
    watch = PairWatch(model)
    with watch:
        model(torch.randn(2, 8, 6, 6))
    assert watch.uses == {"a": ["relu"], "b": ["prelu"], "c": ["add"], "d": ["silu", "mul"]}
    assert watch.pairs() == {"a", "b"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_network_is_converted_runs_and_its_images_are_independent() -> None:
    row = survey(candidate(Block))
    assert (row.norms, row.with_proxy, row.pairs, row.missed) == (4, 2, 2, [])
    assert (row.runs, row.refused, row.independent) == ("", "", True)
    assert sum(row.alone.values()) == 2 and row.kept == {}


def test_a_pair_that_tracing_does_not_reach_is_missed_with_its_reason() -> None:
    # Without values on the meta device the forward above has no answer; a real device has one.
    row = survey(candidate(OnValues))
    assert row.pairs == 2 and [path for path, _ in row.missed] == ["a", "b"]
    assert all("no traced data flow" in reason for _, reason in row.missed)
    assert row.untraced and "control flow" in row.untraced[0][1]


def test_a_kept_batch_norm_makes_images_dependent() -> None:
    row = survey(candidate(KeepsBatchNorm))
    assert row.independent is False and "OwnBatchNorm extends BatchNorm2d" in next(iter(row.kept))


def test_a_network_that_does_not_run_before_is_told() -> None:
    assert survey(candidate(Block, (3, 6, 6))).refused.startswith("does not run before it: ")


def test_the_page_counts_and_lists_what_failed() -> None:
    rows = [survey(candidate(build)) for build in (Block, OnValues, KeepsBatchNorm)]
    text = page([*rows, Surveyed("made", "blocks", "Broken", refused="ValueError: it breaks")], ["made: Other"])
    # networks, norms, with PN, alone, kept, pairs, missed, run, independent
    assert "| made | 4 | 12 | 3 | 8 | 1 | 6 | 3 | 3 | 2 of 3 |" in text
    assert "## Not surveyed yet\n\n1 networks: made: Other.\n" in text
    assert "\n| blocks | 4 | 12 |" in text and "Versions: " not in text
    assert "Versions: made 1.2.\n" in page([Surveyed("made", "blocks", "Block", version="1.2")], [])
    assert "* made: OnValues, `a`: no traced data flow reaches it" in text
    assert "* made: Broken: ValueError: it breaks" in text and "* made: KeepsBatchNorm\n" in text


def test_the_command_goes_on_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(library: str, import_module: Any, *, every: bool) -> Any:
        if library == "monai":
            raise ImportError("No module named 'monai'", name="monai")
        return iter([candidate(Block)])

    monkeypatch.setattr("analysis.commands.conversion.candidates", listed)
    arguments = ["conversion", "--rows", str(tmp_path / "rows.jsonl"), "--page", str(tmp_path / "page.md")]
    arguments += ["--library", "monai", "timm"]
    assert analyze.main(arguments) == 0
    (line,) = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "Block"
    assert " 1 | 4 | 2 | " in (tmp_path / "page.md").read_text()
    assert "monai is left out" in capsys.readouterr().out
    (tmp_path / "rows.jsonl").write_text(line.replace('"timm"', '"made"') + "\nbroken\n")
    assert analyze.main(arguments) != 0
    assert "line 2 is not a survey result" in capsys.readouterr().err
