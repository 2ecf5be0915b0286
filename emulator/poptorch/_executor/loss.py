"""Which tensor a training model minimizes: the last of its marked losses, whatever it returns.

PopTorch marks the results of identity_loss and of torch's loss functions, drops marks that another marked loss is
computed from, and needs exactly one to be left. Without a compiler's graph, "computed from" is read off the autograd
graph.
"""

from __future__ import annotations

from typing import Any, List, Optional, Set

import torch

from ..errors import backend_error


def index_of_final_loss(losses: List[torch.Tensor]) -> int:
    """Return the position of the one marked loss that no other marked loss is computed from.

    Losses that do not depend on any trained weight have no autograd graph; where others have one, they are left out.

    Raises:
        Error: no loss, or several independent ones.
    """
    if not losses:
        raise backend_error("Couldn't find a loss in graph!")
    if len(losses) == 1:
        return 0
    candidates = [index for index, loss in enumerate(losses) if loss.grad_fn is not None]
    if not candidates:
        return len(losses) - 1
    used: Set[Any] = set()
    for index in candidates:
        used |= _ancestors(losses[index].grad_fn)
    final = [index for index in candidates if losses[index].grad_fn not in used]
    if len(final) != 1:
        raise backend_error(
            "Multiple independent losses found in graph. Graph must have one final loss. "
            "Wrap final graph loss in poptorch.identity_loss."
        )
    return final[0]


def _ancestors(node: Optional[Any]) -> Set[Any]:
    """Return all autograd nodes that `node` was computed from, without itself."""
    seen: Set[Any] = set()
    pending = [] if node is None else [node]
    while pending:
        for parent, _ in pending.pop().next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return seen
