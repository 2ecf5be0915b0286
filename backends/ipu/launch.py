"""Several processes that share IPUs: how they were started, whether that fits the run, and how they are connected."""

from __future__ import annotations

import os
import socket
from typing import Any, Callable, Optional

from backends.errors import DeviceError
from backends.ipu.processes import HorovodProcesses, OneProcess, Processes, TorchProcesses
from configs import ConfigError


def started_by_horovod(name: str, popdist: Any, import_horovod: Callable[[], Optional[Any]]) -> Optional[Any]:
    """horovod.torch if `horovodrun` started several processes and poprun did not.

    Args:
        name: of the device.
        popdist: the module.
        import_horovod: horovod.torch, initialized; None where it is not installed.

    Raises:
        DeviceError: on other devices than the emulator, whose IPUs only poprun connects.
    """
    if popdist.isPopdistEnvSet() or int(os.environ.get("HOROVOD_SIZE", "1")) == 1:
        return None
    horovod = import_horovod()
    if name != "ipu_emulator" or horovod is None:
        raise DeviceError(
            f"device.name {name} under horovodrun: IPUs of several processes are connected by poprun; start with "
            "poprun --num-instances ... --num-replicas ..."
        )
    return horovod


def be_an_instance(horovod: Any, local_replicas: int, stages: int) -> None:
    """Tell popdist what poprun would have: horovodrun's processes are the instances."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        meeting = (os.environ.get("HOROVOD_HOSTNAME", socket.gethostname()), probe.getsockname()[1])
    host, port = horovod.broadcast_object(meeting, root_rank=0)
    os.environ.update(
        POPDIST_NUM_TOTAL_REPLICAS=str(local_replicas * horovod.size()),
        POPDIST_NUM_LOCAL_REPLICAS=str(local_replicas),
        POPDIST_NUM_IPUS_PER_REPLICA=str(stages),
        POPDIST_REPLICA_INDEX_OFFSET=str(local_replicas * horovod.rank()),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )


def check_replicas(started: int, planned: int, stages: int) -> None:
    """Compare the replicas that poprun started with those of the run.

    Raises:
        ConfigError: they differ.
    """
    if started != planned:
        raise ConfigError(
            f"{started} replicas were started, but ipu.ipus {planned * stages} with {stages} stages are {planned}; "
            f"set --num-replicas {planned} and --ipus-per-replica {stages}, or ipu.ipus {started * stages}"
        )


def instance_options(popdist: Any, stages: int) -> Any:
    """PopTorch's options of a process that poprun started.

    Raises:
        ConfigError: it was started with another number of IPUs in a replica.
    """
    try:
        return popdist.poptorch.Options(ipus_per_replica=stages)
    except RuntimeError as error:
        advice = f"the pipeline has {stages} stages: start with --ipus-per-replica {stages}"
        raise ConfigError(f"{error}; {advice}") from error


def connect(horovod: Optional[Any], index: int, count: int) -> Processes:
    """Return the `count` processes of the run, connected by Horovod if it started them, else by torch.distributed."""
    if count == 1:
        return OneProcess()
    is_connected = horovod is not None and horovod.size() == count
    return HorovodProcesses(horovod) if is_connected else TorchProcesses(index, count)
