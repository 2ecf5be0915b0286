"""Which modules need another forward, since an activation can only be removed from their code."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Set, Tuple

from torch import nn

from normact.convert.rewrite import Rewriting, why_not_rewritten
from normact.data_flow import Consumer
from normact.recognize import NormDescription
from normact.tracing import optional_arguments


class Rewrite(NamedTuple):
    """A pair whose activation can only be removed from the code of the module that applies it."""

    norm: nn.Module
    path: str
    enclosing: str
    caller: str


def find_rewrites(
    model: nn.Module,
    norms: List[Tuple[str, nn.Module, NormDescription]],
    consumers: Dict[nn.Module, Consumer],
    staying: Set[nn.Module],
) -> Tuple[List[Rewrite], Dict[nn.Module, str]]:
    """Return the pairs that need a rewritten graph, and why some cannot have one."""
    rewrites: List[Rewrite] = []
    for path, module, _ in norms:
        consumer = consumers.get(module)
        if consumer is None or consumer.activation is None:
            continue
        if consumer.module not in staying and _is_exclusive(model, consumer):
            continue
        enclosing = _enclosing(model, path, consumer.caller)
        rewrites.append(Rewrite(module, path, enclosing, consumer.caller))
    refused: Dict[nn.Module, str] = {}
    for enclosing in sorted({rewrite.enclosing for rewrite in rewrites}):
        group = [rewrite for rewrite in rewrites if rewrite.enclosing == enclosing]
        reason = why_not_rewritten(model.get_submodule(enclosing), rewriting_of(enclosing, group))
        if reason:
            words = f"{enclosing or 'the network'} cannot be rewritten: {reason}"
            refused.update({rewrite.norm: words for rewrite in group})
    return [rewrite for rewrite in rewrites if rewrite.norm not in refused], refused


def _is_exclusive(model: nn.Module, consumer: Consumer) -> bool:
    """Whether the activation is a module that this pair alone uses."""
    if consumer.module is None or consumer.module_calls != 1:
        return False
    prefix = consumer.traced + "." if consumer.traced else ""
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is consumer.module]
    return all(name.startswith(prefix) for name in names)


def _enclosing(model: nn.Module, norm_path: str, caller: str) -> str:
    """Return the smallest module around a pair that takes required arguments alone.

    It holds the norm, and is the activation's caller or holds it. An optional argument (a shortcut that may be
    None) lets one module run two codes, and the trace of that module by itself knows one of them.
    """
    common: List[str] = []
    for a, b in zip(norm_path.split(".")[:-1], caller.split(".") if caller else []):
        if a != b:
            break
        common.append(a)
    while common and optional_arguments(model.get_submodule(".".join(common))):
        common.pop()
    return ".".join(common)


def rewriting_of(enclosing: str, group: List[Rewrite]) -> Rewriting:
    """Erase the activations of a group of pairs; of the modules inside, only those on the way to them are entered."""
    cut = len(enclosing) + 1 if enclosing else 0
    entered: Set[str] = set()
    for rewrite in group:
        for path in (rewrite.path[cut:].rpartition(".")[0], rewrite.caller[cut:]):
            parts = path.split(".") if path else []
            entered.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    return Rewriting(tuple(sorted(entered)), tuple(rewrite.path[cut:] for rewrite in group))
