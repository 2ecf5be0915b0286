"""Where the parts of a network run: pipeline stages and recomputation checkpoints, named by module paths."""

from __future__ import annotations

import difflib
from typing import Any, Callable, Sequence

from torch import nn

from configs import ConfigError


def find_module(network: nn.Module, path: str, field: str) -> nn.Module:
    """The module of `network` at a path such as `stages.2.0`.

    Raises:
        ConfigError: there is none; the message has the nearest path.
    """
    modules = dict(network.named_modules())
    if path and path in modules:
        return modules[path]
    near = difflib.get_close_matches(path, [name for name in modules if name], n=1, cutoff=0.0)
    raise ConfigError(f"{field} {path!r} is no module of this network; the nearest is {near[0]}")


def begin_stages(network: nn.Module, splits: Sequence[str], begin_block: Callable[..., Any]) -> None:
    """Makes each module of `splits`, and all that runs after it, a stage on the next IPU; IPU 0 has what comes before.

    Args:
        begin_block: poptorch.BeginBlock.
    """
    for ipu, path in enumerate(splits, start=1):
        begin_block(find_module(network, path, "ipu.splits"), user_id=path, ipu_id=ipu)


def keep_outputs(network: nn.Module, checkpoints: Sequence[str], keep: Callable[[Any], Any]) -> None:
    """Marks the outputs of the modules of `checkpoints` to be kept for backward.

    Args:
        keep: poptorch.recomputationCheckpoint.
    """
    for path in checkpoints:
        find_module(network, path, "ipu.checkpoints").register_forward_hook(lambda module, inputs, out: keep(out))
