"""Train a part of a network: the rest keeps its weights, and computes as in evaluation."""

from __future__ import annotations

import difflib
from typing import List, Sequence

from torch import nn


def freeze_all_but(network: nn.Module, paths: Sequence[str]) -> List[nn.Module]:
    """Freeze every parameter outside the modules at `paths`, and return the modules that are frozen as a whole.

    These are to stay in evaluation mode (training.classifier.Classifier keeps them there): a frozen batch norm then
    uses its running statistics and leaves them as they are, and no block is dropped in front of what is trained. The
    dropout between features and classifier belongs to the classifier.

    Args:
        network: the whole network (models.ImageClassifier).
        paths: names of modules, as in network.named_modules(), e.g. "top" or "stages.6".

    Raises:
        ValueError: a path that is not a module, or whose module has no parameter.
    """
    modules = dict(network.named_modules())
    for path in paths:
        if path not in modules or path == "":
            top = ", ".join(name for name, child in network.named_children() if any(True for _ in child.parameters()))
            nearest = difflib.get_close_matches(path, modules, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {top}, and their parts"
            raise ValueError(f"model.train_only names {path!r}, which is not a module of the network; {hint}")
        if not any(True for _ in modules[path].parameters()):
            raise ValueError(f"model.train_only names {path!r}, which has no parameter to train; remove it")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{path}.") for path in paths))
    at_work = [*paths, "dropout"] if "classifier" in paths else paths
    return [
        module
        for name, module in modules.items()
        if not any(_is_within(name, path) or _is_within(path, name) for path in at_work)
    ]


def _is_within(inner: str, outer: str) -> bool:
    return outer == "" or inner == outer or inner.startswith(f"{outer}.")
