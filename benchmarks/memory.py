"""Bytes that training keeps for the backward pass with every norm, as a ratio to batch norm.

    python -m benchmarks.memory

Counted are the storages that autograd saves in one forward pass, each once, without the parameters and buffers
themselves; of an activation that is recomputed, what its recipe holds. Under autocast the copies of the weights are
listed apart: they are the same for every norm and every batch size.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Set, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import (
    BATCH_NORM,
    NO_NORM,
    NUM_GROUPS,
    VARIANTS,
    WORKLOADS,
    Workload,
    autocast,
    build_network,
    images_of,
)
from benchmarks.results import RESULTS, write_results
from normact.kernels.recompute import Recipe, pack, recomputed_activations, unpack


class SavedBytes:
    """Counts what autograd saves, as hooks of torch.autograd.graph.saved_tensors_hooks.

    Args:
        model: its parameters and buffers are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self.activations = 0
        self.weight_copies = 0
        self._own: Set[int] = {_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._weight_shapes: Set[Tuple[int, ...]] = {tuple(p.shape) for p in model.parameters() if p.dim() > 1}
        # Holding the tensors keeps their storages alive, so that no address is used twice.
        self._seen: Dict[int, Tensor] = {}

    def pack(self, tensor: Tensor) -> Union[Tensor, Recipe]:
        packed = pack(tensor)
        kept = (packed.x, packed.statistics, *packed.layer.rows) if isinstance(packed, Recipe) else (packed,)
        for each in kept:
            if each is not None:
                self._count(each)
        return packed

    def _count(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key in self._own or key in self._seen:
            return
        self._seen[key] = tensor
        num_bytes = tensor.untyped_storage().nbytes()
        if tuple(tensor.shape) in self._weight_shapes:
            self.weight_copies += num_bytes
        else:
            self.activations += num_bytes


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def measure_saved_bytes(workload: Workload, variant: str) -> SavedBytes:
    """Return what one forward pass of training keeps."""
    model = build_network(workload, VARIANTS[variant])
    saved = SavedBytes(model)
    x, labels = images_of(workload), torch.zeros(workload.images, dtype=torch.long)
    # The counting hooks lie inside and are the ones that autograd calls; the outer context makes recipes.
    with recomputed_activations(), torch.autograd.graph.saved_tensors_hooks(saved.pack, unpack), autocast(workload):
        F.cross_entropy(model(x).float(), labels)
    return saved


def measure_workload(workload: Workload) -> Dict[str, Any]:
    """Return one row: bytes and ratios by variant."""
    saved = {name: measure_saved_bytes(workload, name) for name in VARIANTS if name != NO_NORM}
    baseline = saved[BATCH_NORM]
    variants = {
        name: {
            "activation_bytes": count.activations,
            "weight_copy_bytes": count.weight_copies,
            "activation_ratio": count.activations / baseline.activations,
            "total_ratio": (count.activations + count.weight_copies) / (baseline.activations + baseline.weight_copies),
        }
        for name, count in saved.items()
    }
    for name, numbers in variants.items():
        megabytes = 1e-6 * (numbers["activation_bytes"] + numbers["weight_copy_bytes"])
        print(
            f"{workload.name}: {name} {megabytes:.1f} MB, {numbers['total_ratio']:.3f} of batch norm, "
            f"activations alone {numbers['activation_ratio']:.3f}",
            flush=True,
        )
    return {"workload": workload.name, "variants": variants}


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    rows = [measure_workload(workload) for workload in WORKLOADS if options.only in workload.name]
    write_results("memory", {"groups": NUM_GROUPS}, rows, folder=options.results)


if __name__ == "__main__":
    main()
