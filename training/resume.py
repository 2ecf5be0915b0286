"""Everything that an exact continuation needs, as one dictionary of tensors and builtins; and what makes it inexact."""

from __future__ import annotations

import platform
from typing import Any, Dict, List, Mapping

import numpy as np
import torch

from training.checkpoint import CheckpointError

# What decides the result to the last bit, besides the configuration.
_EXACTNESS = ("torch", "threads", "replicas", "device")


def execution_facts(replicas: int, device: str) -> Dict[str, Any]:
    """How this process computes: equal facts give bit-identical results. The other versions are kept for people."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "replicas": replicas,
        "device": device.split(":")[0],
    }


def why_inexact(saved: Mapping[str, Any], current: Mapping[str, Any]) -> List[str]:
    """Reasons why continuing is not bit-identical to an uninterrupted run; empty where it is."""
    return [f"{fact} was {saved[fact]}, is {current[fact]}" for fact in _EXACTNESS if saved[fact] != current[fact]]


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], path: str) -> None:
    """Raises CheckpointError where the configuration differs in what the experiment means.

    What says only how it is executed may differ: the sections `device` and `run` but for the seed, micro_batch_size,
    workers, the folder of the data, kernel and recompute.
    """
    different = []
    for section, values in _meaning(current).items():
        before = _meaning(saved).get(section, {})
        different += [
            f"{section}.{key} was {before.get(key)!r}, is {value!r}"
            for key, value in values.items()
            if before.get(key) != value
        ]
    if different:
        raise CheckpointError(
            f"{path} was written by another experiment: {'; '.join(different[:5])}. Resume with the same values, "
            "or start a new run in another --output-dir"
        )


def _meaning(config: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
    executed = {"data": {"workers", "dir"}, "batch": {"micro_batch_size"}, "norm": {"kernel", "recompute"}}
    meaning = {
        section: {key: value for key, value in values.items() if key not in executed.get(section, ())}
        for section, values in config.items()
        if section not in ("device", "run")
    }
    meaning["run"] = {"seed": config["run"]["seed"]}
    return meaning
