"""Checkpoints damaged at random: what loads is what was saved, and everything else is an error of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Tuple

import pytest
from damage import damaged
from test_checkpoint import assert_same, make_state

from experiment.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from training.weights import CheckpointError

QUICK, ALL = 100, 1000
# Each loaded as other values than were saved, or was an error of another kind.
KEPT: Tuple[int, ...] = ()
SEEDS = pytest.mark.parametrize(
    "seeds",
    [range(QUICK), pytest.param(range(QUICK, ALL), marks=pytest.mark.slow), KEPT],
    ids=["quick", "all", "kept"],
)


def loaded_or_refused(load: Callable[[], Any], seed: int) -> Any:
    """Return the state; None where it is refused as a checkpoint. Any other error names the seed."""
    try:
        return load()
    except CheckpointError:
        return None
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


@SEEDS
def test_a_damaged_checkpoint_is_an_error_of_the_checkpoint_or_loads_the_same(
    tmp_path: Path, seeds: "range | Tuple[int, ...]"
) -> None:
    """Copied without its manifest: the file alone is judged."""
    save_checkpoint(tmp_path, make_state(1), 1, keep=2)
    content, path = (tmp_path / "step_00000001.pt").read_bytes(), tmp_path / "copied.pt"
    saved = load_checkpoint(tmp_path / "step_00000001.pt")
    for seed in seeds:
        path.write_bytes(damaged(content, seed, content))
        state = loaded_or_refused(lambda: load_checkpoint(path), seed)
        if state is not None:
            assert_same(saved, state)


@SEEDS
def test_a_run_never_continues_from_a_damaged_file_of_its_newest_checkpoint(
    tmp_path: Path, seeds: "range | Tuple[int, ...]"
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, make_state(step), step, keep=2)
    states = {step: load_checkpoint(tmp_path / f"step_{step:08d}.pt") for step in (1, 2)}
    contents = {name: (tmp_path / name).read_bytes() for name in ("step_00000002.pt", "step_00000002.json")}
    for seed in seeds:
        name = sorted(contents)[seed % 2]
        (tmp_path / name).write_bytes(damaged(contents[name], seed, contents["step_00000002.pt"]))
        path = loaded_or_refused(lambda: newest_checkpoint(tmp_path, tell=lambda message: None), seed)
        assert path is not None, seed
        state = load_checkpoint(path)
        assert_same(states[state["step"]], state)
        (tmp_path / name).write_bytes(contents[name])
