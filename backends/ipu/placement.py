"""Where the parts of a network run: pipeline stages and recomputation checkpoints, named by module paths."""

from __future__ import annotations

import bisect
import difflib
from typing import Any, Callable, List, Mapping, Sequence

import torch
from torch import nn

from configs import ConfigError
from normact import NormAct
from normact.joint_statistics import JointProxyStatistics


def find_module(network: nn.Module, path: str, field: str) -> nn.Module:
    """Return the module of `network` at a path such as `stages.2.0`.

    Raises:
        ConfigError: there is none; the message has the nearest path.
    """
    modules = dict(network.named_modules())
    if path and path in modules:
        return modules[path]
    near = difflib.get_close_matches(path, [name for name in modules if name], n=1, cutoff=0.0)
    raise ConfigError(f"{field} {path!r} is not a module of this network; the nearest is {near[0]}")


def begin_stages(network: nn.Module, splits: Sequence[str], begin_block: Callable[..., Any]) -> None:
    """Make each module of `splits`, and all that runs after it, a stage on the next IPU; IPU 0 has what comes before.

    Args:
        network: changed in place.
        splits: paths of the modules.
        begin_block: poptorch.BeginBlock.
    """
    for ipu, path in enumerate(splits, start=1):
        begin_block(find_module(network, path, "ipu.splits"), user_id=path, ipu_id=ipu)


def keep_outputs(network: nn.Module, checkpoints: Sequence[str], keep: Callable[[Any], Any]) -> None:
    """Mark the outputs of the modules of `checkpoints` to be kept for backward.

    Args:
        network: changed in place.
        checkpoints: paths of the modules.
        keep: poptorch.recomputationCheckpoint.
    """
    for path in checkpoints:
        find_module(network, path, "ipu.checkpoints").register_forward_hook(lambda module, inputs, out: keep(out))


def layers_by_stage(network: nn.Module, splits: Sequence[str], begins: Mapping[str, int]) -> List[List[NormAct]]:
    """Return the norm+activation layers of each stage, as far as they are executed.

    Args:
        network: whose layers are meant.
        splits: paths of the modules at which stages begin.
        begins: module path -> place of its first operation in the order of execution (backends.plan.trace).
    """
    starts = [begins[path] for path in splits]
    stages: List[List[NormAct]] = [[] for _ in range(len(splits) + 1)]
    for path, module in network.named_modules():
        if isinstance(module, NormAct) and path in begins:
            stages[bisect.bisect_right(starts, begins[path])].append(module)
    return stages


def join_statistics(
    network: nn.Module, splits: Sequence[str], begins: Mapping[str, int], activations: torch.dtype
) -> None:
    """Compute the proxy statistics of each stage's layers together, when the stage begins.

    After `begin_stages`, so that it is done on the stage's own IPU.

    Args:
        network: changed in place.
        splits: paths of the modules at which stages begin.
        begins: as for `layers_by_stage`.
        activations: type of the layers' inputs.
    """
    modules = [network, *(find_module(network, path, "ipu.splits") for path in splits)]
    for module, layers in zip(modules, layers_by_stage(network, splits, begins)):
        module.register_forward_pre_hook(JointProxyStatistics(layers, activations))
