"""poptorch.Options for an instance: what popdist.run was told cannot be set again."""

from __future__ import annotations

from typing import Any, Optional

import poptorch
from poptorch._options.sub_options import _DistributedOptions
from poptorch.options import Options as _PlainOptions

import popdist


def _refused(name: str) -> RuntimeError:
    return RuntimeError(f"Cannot call `{name}` with popdist.poptorch.Options: popdist.run decides it")


class _InstanceOptions(_DistributedOptions):
    """Options.Distributed of an instance."""

    def disable(self) -> Any:
        """Refused."""
        raise _refused("Distributed.disable")

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> Any:
        """Refused."""
        raise _refused("Distributed.setEnvVarNames")

    def configureProcessId(self, process_id: int, num_processes: Optional[int] = None) -> Any:
        """Refused."""
        raise _refused("Distributed.configureProcessId")


class Options(_PlainOptions):
    """Options with the replicas and the process that popdist.run chose.

    Args:
        ipus_per_replica: must be what popdist.run was told, where it was used; None: that.

    Raises:
        RuntimeError: another number of IPUs per replica than popdist.run's.
    """

    def __init__(self, ipus_per_replica: Optional[int] = None) -> None:
        super().__init__()
        started_with = popdist.getNumIpusPerReplica()
        if popdist.isPopdistEnvSet() and ipus_per_replica not in (None, started_with):
            raise RuntimeError(
                f"ipus_per_replica is {ipus_per_replica}, but popdist.run was started with "
                f"--ipus-per-replica {started_with}"
            )
        _PlainOptions.replicationFactor(self, popdist.getNumLocalReplicas())
        _DistributedOptions.configureProcessId(self.Distributed, popdist.getInstanceIndex(), popdist.getNumInstances())
        self.Distributed.__class__ = _InstanceOptions

    def useIpuId(self, ipu_id: int) -> poptorch.Options:
        """Refused."""
        raise _refused("useIpuId")

    def replicationFactor(self, replication_factor: int) -> poptorch.Options:
        """Refused."""
        raise _refused("replicationFactor")
