"""An emulation of popdist: which of several processes (instances) this is, as started by `python -m popdist.run`."""

from __future__ import annotations

import os
from typing import Any, Callable, Iterable, Optional

from .connection import connect

__all__ = [
    "execute_on_instances",
    "getInstanceIndex",
    "getNumInstances",
    "getNumIpusPerReplica",
    "getNumLocalReplicas",
    "getNumTotalReplicas",
    "getReplicaIndexOffset",
    "init",
    "isPopdistEnvSet",
]


def _variable(name: str, default: int) -> int:
    return int(os.environ.get(f"POPDIST_{name}", default))


def isPopdistEnvSet() -> bool:
    """Whether this process was started as an instance."""
    return "POPDIST_NUM_TOTAL_REPLICAS" in os.environ


def init() -> None:
    """Connect the instances; needed before they exchange anything."""
    connect()


def getNumTotalReplicas() -> int:
    """Replicas of all instances."""
    return _variable("NUM_TOTAL_REPLICAS", 1)


def getNumLocalReplicas() -> int:
    """Replicas of this instance."""
    return _variable("NUM_LOCAL_REPLICAS", 1)


def getReplicaIndexOffset() -> int:
    """Index among all replicas of this instance's first."""
    return _variable("REPLICA_INDEX_OFFSET", 0)


def getNumIpusPerReplica() -> int:
    """IPUs of one replica."""
    return _variable("NUM_IPUS_PER_REPLICA", 1)


def getNumInstances() -> int:
    """Return number of instances."""
    return getNumTotalReplicas() // getNumLocalReplicas()


def getInstanceIndex() -> int:
    """Index of this instance."""
    return getReplicaIndexOffset() // getNumLocalReplicas()


def execute_on_instances(
    instances: Iterable[int], function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Optional[Any]:
    """Call the function on these instances, and nowhere else; its result there, None elsewhere."""
    return function(*args, **kwargs) if getInstanceIndex() in set(instances) else None
