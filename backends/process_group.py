"""The group in which torch.distributed connects the processes of a run: joined once, and left whole."""

from __future__ import annotations

import gc
import importlib
import threading

import torch.distributed as dist

_HAS_LEFT = threading.Event()


def join(kind: str, rank: int = -1, world_size: int = -1) -> None:
    """Joins the group of all processes.

    Args:
        kind: "gloo" or "nccl".
        rank: of this process, and `world_size`, the number of all; -1: what the launcher put into the environment.
    """
    # The functions of this module have the group as a default argument, taken when it is imported. Imported later, as
    # DistributedDataParallel does, they would hold the group for ever, and with it gloo's threads.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(kind, rank=rank, world_size=world_size)


def leave() -> None:
    """Leaves the group, if there is one, and waits for the end of its threads.

    Each of gloo's threads lets go of the tensors of a collective after whoever waited for it has gone on. Where that is
    the last reference it needs Python's interpreter, and aborts the process that is just taking it apart. So the group
    must end before: its threads are joined when nothing holds it any more, DistributedDataParallel included.
    """
    if dist.is_initialized():
        _HAS_LEFT.set()
        gc.collect()  # what holds the group in a cycle of references
        dist.destroy_process_group()


def was_joined() -> bool:
    """Whether this process is or has been in a group."""
    return _HAS_LEFT.is_set() or dist.is_initialized()
