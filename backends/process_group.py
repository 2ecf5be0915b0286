"""The group in which torch.distributed connects the processes of a run: joined once, and left whole."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import sys
import threading
from typing import Any, Iterator, List, Optional

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from backends.errors import LostProcessError

_HAS_LEFT = threading.Event()
_HELD: List[Any] = []
# What torch says where a process is gone differs with the moment and the version, and names its parts.
_LOST = re.compile(r"gloo|NCCL|connectFullMesh|TCPStore|DistStoreError|Broken pipe|client socket", re.IGNORECASE)


def join(kind: str, rank: int = -1, world_size: int = -1) -> None:
    """Join the group of all processes.

    Args:
        kind: "gloo" or "nccl".
        rank: of this process, and `world_size`, the number of all; -1: what the launcher put into the environment.
        world_size: the number of all processes; -1: likewise.
    """
    # The functions of this module have the group as a default argument, taken when it is imported. Imported later, as
    # DistributedDataParallel does, they would hold the group for ever, and with it gloo's threads.
    importlib.import_module("torch.distributed.nn.functional")
    with explained_loss():
        store = _store_of_a_restart()
        if store is not None:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(kind, store=store, rank=rank, world_size=world_size)


def _store_of_a_restart() -> Optional[dist.Store]:
    """Where the processes meet that torchrun starts again after one failed; None at the first start.

    torchrun keeps one store through all restarts (since 2.5), and in it the addresses of the processes that are gone.
    Launchers on several machines count restarts each by itself, so there the number says nothing.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    store, _, _ = next(rendezvous("env://"))
    return dist.PrefixStore(f"restart_{restarts}", store)


@contextlib.contextmanager
def explained_loss() -> Iterator[None]:
    """Turn what torch raises where another process is gone into one line.

    Raises:
        LostProcessError: another process ended or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        if _LOST.search(str(error)) is None:
            raise
        reason = re.sub(r"^\[[^]]*\] *", "", str(error)).splitlines()[0].split(". ")[0]  # no source file, no advice
        raise LostProcessError(
            "another process of the run ended or cannot be reached: its own output, or the system's log where it was "
            f"killed, says why; start all again with --resume (seen here as: {reason})"
        ) from error


def leave() -> None:
    """Leave the group, if there is one, and wait for the end of its threads.

    Each of gloo's threads lets go of the tensors of a collective after whoever waited for it has gone on. Where that is
    the last reference it needs Python's interpreter, and aborts the process that is just taking it apart. So the group
    must end before: its threads are joined when nothing holds it any more, DistributedDataParallel included.

    While an error is under way its traceback may hold DistributedDataParallel, and that would be the last to let go of
    the group: it joins the threads without leaving the interpreter to them, for ever. The group then stays.
    """
    if dist.is_initialized():
        _HAS_LEFT.set()
        if sys.exc_info()[0] is not None:
            _HELD.append(dist.group.WORLD)
        gc.collect()  # what holds the group in a cycle of references
        dist.destroy_process_group()


def was_joined() -> bool:
    """Whether this process is or has been in a group."""
    return _HAS_LEFT.is_set() or dist.is_initialized()
