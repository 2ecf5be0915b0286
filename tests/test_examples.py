"""The example trains, in plain torch, within a hundred lines."""

from pathlib import Path

from examples import minimal


def test_the_minimal_example_learns_to_tell_the_classes_apart_in_less_than_a_hundred_lines() -> None:
    assert minimal.main(["--steps", "40"]) > 0.9  # chance is 1 in 3; seeded, and 1.0 when written
    assert len(Path(minimal.__file__).read_text().splitlines()) < 100
