"""The learning rate at given updates, against hand-computed tables."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import load_config
from configs.schema.learning import ScheduleConfig
from training.schedule import build_schedule


def rate_at_end_of_epoch(schedule: ScheduleConfig, peak: float, steps_per_epoch: int, epoch: int) -> float:
    return build_schedule(schedule, peak, steps_per_epoch)(epoch * steps_per_epoch - 1)


@pytest.mark.parametrize("epoch, expected", [(1, 0.39990), (5, 1.98769), (50, 1.00000), (100, 0.0)])
@pytest.mark.parametrize("steps_per_epoch", [1, 7, 1251])
def test_cosine_with_warmup_equals_the_published_table(steps_per_epoch: int, epoch: int, expected: float) -> None:
    schedule = ScheduleConfig(name="cosine", epochs=100, warmup_epochs=5.0)
    assert rate_at_end_of_epoch(schedule, 2.0, steps_per_epoch, epoch) == pytest.approx(expected, abs=5e-6)


def test_warmup_climbs_in_equal_parts_and_then_stays() -> None:
    rate = build_schedule(ScheduleConfig(name="constant", epochs=4, warmup_epochs=1.5), 3.0, 4)
    assert [rate(step) for step in range(16)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5] + [3.0] * 11, rel=1e-15)


# Steps per epoch 4. A drop at epoch m: update 4m - 1 completes epoch m with the old value, update 4m has the new one.
STEP_DROPS: List[Tuple[int, float]] = [(0, 8.0), (7, 8.0), (8, 2.0), (11, 2.0), (12, 0.5), (19, 0.5)]


@pytest.mark.parametrize("step, expected", STEP_DROPS)
def test_step_schedule_drops_at_the_first_update_after_a_milestone(step: int, expected: float) -> None:
    schedule = ScheduleConfig(name="step", epochs=5, milestones=(2.0, 3.0), decay_factor=0.25)
    assert build_schedule(schedule, 8.0, 4)(step) == expected


def test_exponential_schedule_is_a_staircase() -> None:
    schedule = ScheduleConfig(name="exponential", epochs=6, decay_factor=0.5, decay_epochs=1.5)
    rate = build_schedule(schedule, 1.0, 2)  # a drop every 3 updates
    assert [rate(step) for step in range(12)] == [1.0] * 3 + [0.5] * 3 + [0.25] * 3 + [0.125] * 3


@pytest.mark.parametrize("epoch, expected", [(1, 0.00970), (5, 0.04563), (350, 5.345e-4)])
@pytest.mark.parametrize("steps_per_epoch", [1, 7, 1668])
def test_efficientnet_drops_from_the_start_equal_the_published_table(
    steps_per_epoch: int, epoch: int, expected: float
) -> None:
    # ceil(.424 t) drops by t epochs: one every 1 / .424 epochs, the first at the first update.
    schedule = ScheduleConfig(
        name="exponential",
        epochs=350,
        warmup_epochs=5.0,
        decay_factor=0.97,
        decay_epochs=2.358490566,
        first_drop="at_start",
    )
    # The table has four digits.
    assert rate_at_end_of_epoch(schedule, 0.05, steps_per_epoch, epoch) == pytest.approx(expected, rel=2e-4)


def test_the_authors_efficientnet_schedule_has_146_equally_spaced_drops() -> None:
    config = load_config("en_b0_g16_gn4pn")
    steps_per_epoch = 100
    rate = build_schedule(config.schedule, config.optimizer.learning_rate, steps_per_epoch)
    rates = [rate(step) for step in range(350 * steps_per_epoch)]
    assert max(rates) == pytest.approx(0.046875 * 0.97**2, rel=1e-12)  # warm-up ends after the drop at 4.79 epochs
    drops = [step for step in range(5 * steps_per_epoch, len(rates)) if rates[step] < rates[step - 1]]
    # 146 drops at multiples of 350/146; two fall into warm-up, and the last one on the end of training.
    assert len(drops) == 146 - 2 - 1
    assert {later - earlier for earlier, later in zip(drops, drops[1:])} == {239, 240}  # 350 / 146 x 100 = 239.7
    assert rates[-1] == pytest.approx(0.046875 * 0.97**145, rel=1e-12)


def test_exponential_drop_falls_on_the_written_decimal() -> None:
    """12 epochs are 5 x 2.4 exactly, but the float nearest to 2.4 is smaller: it would drop one step early."""
    schedule = ScheduleConfig(name="exponential", epochs=20, decay_factor=0.5, decay_epochs=2.4)
    rate = build_schedule(schedule, 1.0, 10)
    assert (rate(119), rate(120)) == (0.5**4, 0.5**5)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["constant", "cosine", "step", "exponential"]),
    epochs=st.integers(2, 12),
    steps_per_epoch=st.integers(1, 9),
    warmup=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_rate_never_leaves_zero_to_peak_nor_grows_after_warmup(
    name: Any, epochs: int, steps_per_epoch: int, warmup: float
) -> None:
    options: Dict[str, Dict[str, Any]] = {
        "step": {"milestones": (1.0, 1.5), "decay_factor": 0.1},
        "exponential": {"decay_epochs": 0.7, "decay_factor": 0.97},
    }
    extra = options.get(name, {})
    rate = build_schedule(ScheduleConfig(name=name, epochs=epochs, warmup_epochs=warmup, **extra), 0.3, steps_per_epoch)
    rates = [rate(step) for step in range(epochs * steps_per_epoch)]
    assert all(0 <= value <= 0.3 for value in rates)
    after = rates[math.ceil(warmup * steps_per_epoch) :]
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize("step", [-1, 12])
def test_steps_outside_the_run_are_errors(step: int) -> None:
    rate = build_schedule(ScheduleConfig(name="constant", epochs=3), 0.1, 4)
    assert rate(11) == 0.1
    with pytest.raises(ValueError, match=rf"step {step} is outside the run: 3 epochs x 4 steps are 0 to 11"):
        rate(step)


def test_an_epoch_without_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="steps_per_epoch 0"):
        build_schedule(ScheduleConfig(name="constant", epochs=3), 0.1, 0)
