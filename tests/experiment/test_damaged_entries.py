"""Checkpoints with right bytes and wrong entries, drawn at random: told as such, or used as they are."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest
import torch
from test_checkpoint import make_state

from experiment.checkpoint import load_checkpoint, save_checkpoint
from experiment.progress import Progress
from experiment.weights_file import read_weights
from training.weights import CheckpointError

QUICK, ALL = 100, 1000
# Each ended in another error.
KEPT: Tuple[int, ...] = ()
Place = Tuple[Any, ...]
ODD: List[Any] = [
    None,
    True,
    -1,
    2**70,
    -(2**63),
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    "a\0",
    [],
    {},
    (),
    [None],
]
ODD += [{"x": 1}, {1: 2}, [[1] * 3] * 3, torch.tensor(3), torch.ones(2), torch.zeros(0), torch.zeros(2, 2).double()]
ODD += [torch.ones(3, dtype=torch.complex64), torch.ones(1, dtype=torch.bool), torch.full((4,), float("nan"))]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the way to each entry, however deep."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*place, key)
        yield from places(entry, (*place, key))


def at(value: Any, place: Place) -> Any:
    for key in place:
        value = value[key]
    return value


def edited(state: Any, seed: int) -> Any:
    """Return the state with one or two entries left out, replaced by odd values, or by other entries of it."""
    chance, changed, ways = random.Random(seed), copy.deepcopy(state), list(places(state))
    for _ in range(chance.choice((1, 1, 2))):
        way = chance.choice(ways)
        try:
            holder = at(changed, way[:-1])
            if chance.random() < 0.2:
                del holder[way[-1]]
            else:
                holder[way[-1]] = copy.deepcopy(chance.choice([*ODD, at(state, chance.choice(ways))]))
        except (KeyError, IndexError, TypeError):  # of an entry that has gone, or is none any more
            continue
    return changed


@pytest.mark.parametrize(
    "seeds",
    [range(QUICK), pytest.param(range(QUICK, ALL), marks=pytest.mark.slow), KEPT],
    ids=["quick", "all", "kept"],
)
def test_a_checkpoint_of_wrong_entries_is_told_or_used_as_it_is(
    tmp_path: Path, seeds: "range | Tuple[int, ...]"
) -> None:
    save_checkpoint(tmp_path, make_state(1), 1, keep=2)
    good, path, used = load_checkpoint(tmp_path / "step_00000001.pt"), tmp_path / "copied.pt", 0
    for seed in seeds:
        torch.save(edited(good, seed), path)
        try:
            state = load_checkpoint(path)
            Progress.from_state(state["progress"])
            assert read_weights(path).step == state["step"]
            used += 1
        except CheckpointError as error:
            assert str(error).startswith(str(path)) and len(str(error)) < 2000, seed
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert used < max(1, len(seeds) / 2)
