"""The state of torch's random number generators, as tensors that a checkpoint can hold."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

import torch


def capture_rng() -> Dict[str, Any]:
    """{"cpu": state, "cuda": [state of each GPU]}; the list is empty on machines without GPUs."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_rng(state: Mapping[str, Any]) -> List[str]:
    """Restore what capture_rng gave; return, in words, what could not be restored on this machine (nothing: exact)."""
    torch.set_rng_state(state["cpu"])
    saved, present = len(state["cuda"]), torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(min(saved, present)):
        torch.cuda.set_rng_state(state["cuda"][index], index)
    if saved == present:
        return []
    return [f"random numbers of {saved} GPUs were saved and {present} are here"]
