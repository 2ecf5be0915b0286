"""The steps of the report, from what every later one needs to what a training does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Tuple

MARK = "ipu_report found: "  # in front of what a step's process found, as JSON

# Whether emulated -> what speed is measured on.
SPEED_EXPERIMENTS: Dict[bool, Tuple[str, ...]] = {
    False: ("fashion_rn20_gn8pn", "rn50_gn8pn_ipu", "en_b0_g16_gn4pn_ipu"),
    True: ("resnet8", "resnet20", "efficientnet_small"),  # networks of generated_smoke, for the emulator
}


class UnequalError(Exception):
    """The device computed something else than the CPU. The message says what and by how much."""


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        name: also the argument of the process that runs it.
        expected: what it shows, in words.
        seconds: after which it is ended.
        is_independent: whether the steps after it run although it failed: they do not need it.
    """

    name: str
    expected: str
    seconds: float
    is_independent: bool = False


def steps(emulated: bool) -> List[Step]:
    """Return all steps in order.

    Args:
        emulated: with networks that a CPU can run.
    """
    speed = [
        Step(f"speed:{name}", f"{name}: images/s beside the plan's range", 3600.0, is_independent=True)
        for name in SPEED_EXPERIMENTS[emulated]
    ]
    return [
        Step("attach", "PopTorch is installed, an IPU answers, and it is the kind that --system names", 300.0),
        Step("compile", "one linear layer compiles, and gives torch's result", 900.0),
        Step("layer", "a GN + PN layer, forward and all gradients, equals the CPU's", 900.0),
        Step("updates", "four weight updates of ResNet-20 from equal weights equal the CPU's", 1800.0),
        *speed,
    ]
