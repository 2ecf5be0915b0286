"""Another norm.name alone does not go with an experiment's other settings: one message has the whole command."""

from __future__ import annotations

import re
from typing import List

import pytest

from configs import BatchPlan, ConfigError, load_config, plan_batch
from datasets import build_datasets
from experiment.network import build_network

CHOICES = [
    ("generated_smoke", "batch", ["norm.num_groups=null", "batch.norm_batch_size=32"]),
    ("generated_smoke", "layer", ["norm.num_groups=null"]),
    ("generated_smoke", "frn", ["norm.num_groups=null", "norm.proxy=false"]),
    ("generated_smoke", "none", ["norm.num_groups=null", "norm.proxy=false"]),
]


@pytest.mark.parametrize(("experiment", "norm", "options"), CHOICES)
def test_the_command_in_the_message_is_complete(experiment: str, norm: str, options: List[str]) -> None:
    def build(*overrides: str) -> BatchPlan:
        config = load_config(experiment, ["data.num_train_images=64", "data.num_eval_images=8", *overrides])
        factory, _ = build_network(config, build_datasets(config.data, 0))
        return plan_batch(
            config.batch,
            uses_batch_norm=factory.uses_batch_norm,
            replicas=1,
            local_replicas=1,
            max_micro_batch_size=64,
            can_share_statistics=True,
            device_iterations=1,
        )

    with pytest.raises(ConfigError) as caught:
        build(f"norm.name={norm}")
    told = re.findall(r"--set (\S+)", str(caught.value))
    assert told[0] == f"norm.name={norm}" and sorted(told[1:]) == sorted(options)
    build(*told)
