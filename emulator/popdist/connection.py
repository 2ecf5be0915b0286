"""Connects instances through torch.distributed's gloo backend."""

from __future__ import annotations

import atexit
import gc
import importlib
import os

import torch.distributed as dist


def connect() -> None:
    """Join the process group of all instances; nothing to do for a single one, or a second time.

    Raises:
        RuntimeError: the address that popdist.run sets is missing.
    """
    total = int(os.environ.get("POPDIST_NUM_TOTAL_REPLICAS", "1"))
    local = int(os.environ.get("POPDIST_NUM_LOCAL_REPLICAS", "1"))
    instances = total // local
    if instances == 1 or dist.is_initialized():
        return
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise RuntimeError(
            f"{instances} instances need MASTER_ADDR and MASTER_PORT to find each other: "
            "start them with `python -m popdist.run`"
        )
    index = int(os.environ.get("POPDIST_REPLICA_INDEX_OFFSET", "0")) // local
    # Its functions keep the group that they find when they are imported, and with it gloo's threads.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("gloo", rank=index, world_size=instances)
    atexit.register(_disconnect)


def _disconnect() -> None:
    """End gloo's threads: one that lets go of a tensor while Python ends would abort the process."""
    if dist.is_initialized():
        gc.collect()  # what holds the group in a cycle of references
        dist.destroy_process_group()
