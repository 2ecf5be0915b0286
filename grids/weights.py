"""How far the final weights of a grid's rows are apart.

python -m grids.weights runs/grids/micro_batch
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import List, Mapping, Optional, Sequence

from torch import Tensor

from configs.command_line import run_command
from configs.exit_codes import CHECKPOINT, explain
from experiment.weights_file import read_weights
from training.weights import CheckpointError


def largest_difference(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """max over tensors of max |w - v| / max |v|: 1e-7 is one rounding of float32, 1 another network.

    Raises:
        ValueError: tensors of other names or shapes.
    """
    wrong = [name for name in {**weights, **others} if _shape(weights, name) != _shape(others, name)]
    if wrong:
        raise ValueError(f"not the same network: {', '.join(sorted(wrong)[:3])} differ in name or shape")
    shares = [
        float((tensor.double() - others[name].double()).abs().max() / others[name].double().abs().max())
        for name, tensor in weights.items()
        if tensor.is_floating_point() and others[name].abs().max() > 0
    ]
    return max(shares)


def _shape(weights: Mapping[str, Tensor], name: str) -> Optional[Sequence[int]]:
    return tuple(weights[name].shape) if name in weights else None


def main(arguments: Optional[List[str]] = None) -> int:
    """Print each run folder's largest difference to the first. Return 0 when done, 4 without such weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", metavar="DIR", help="a grid's runs, with their checkpoints (keep_checkpoints: true)")
    options = parser.parse_args(arguments)
    folders = sorted(path.parent for path in Path(options.folder).glob("*/checkpoints"))
    try:
        if len(folders) < 2:
            raise CheckpointError(
                f"{options.folder} holds {len(folders)} runs with checkpoints; two or more are needed"
            )
        first = read_weights(folders[0]).tensors
        print(f"| run | largest difference to {folders[0].name}, relative to the largest weight of its tensor |")
        print("| --- | --- |")
        for folder in folders[1:]:
            print(f"| {folder.name} | {largest_difference(read_weights(folder).tensors, first):.1e} |")
    except (CheckpointError, ValueError, OSError) as error:
        explain(error)
        return CHECKPOINT
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
