"""Adding gradients over the processes that train together, through torch.distributed."""

from __future__ import annotations

from typing import Dict, List, Tuple

import popdist
import torch
import torch.distributed as dist

from ..errors import createPoptorchError


def sum_over_processes(
    gradients: Dict[Tuple[int, int], torch.Tensor], processes: int
) -> Dict[Tuple[int, int], torch.Tensor]:
    """Return the sum of each gradient over all processes, in one transfer per type.

    Raises:
        Error: the processes are not connected.
    """
    popdist.init()
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() != processes:
        raise createPoptorchError(
            f"options.Distributed says {processes} processes, but they are not connected: start them with "
            "`python -m popdist.run --num-instances N --num-replicas R program.py`"
        )
    by_type: Dict[torch.dtype, List[Tuple[int, int]]] = {}
    for place in sorted(gradients):
        by_type.setdefault(gradients[place].dtype, []).append(place)
    total: Dict[Tuple[int, int], torch.Tensor] = {}
    for dtype, places in by_type.items():
        flat = torch.cat([gradients[place].reshape(-1) for place in places])
        wide = flat.float()
        dist.all_reduce(wide)
        parts = wide.to(dtype).split([gradients[place].numel() for place in places])
        total.update({place: part.reshape(gradients[place].shape) for place, part in zip(places, parts)})
    return total
