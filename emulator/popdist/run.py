"""Starts a program several times, as instances that train together: the emulator's poprun.

    poprun --num-instances 2 --num-replicas 4 train.py --config rn50

`python -m popdist.run` does the same where the emulator is not installed. Each instance runs num-replicas /
num-instances replicas. A program that does not begin with "python" is run by the interpreter that runs this. Options of
Graphcore's poprun that choose machines, partitions and the look of the output are accepted, and have no effect.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from typing import Dict, List, Optional, Sequence

# Options of Graphcore's poprun that choose machines, partitions and the look of the output.
_WITHOUT_EFFECT = """
--host --hosts --mpi-global-args --mpi-local-args --vipu-server-host --vipu-server-port --vipu-server-timeout
--vipu-partition --vipu-cluster --vipu-allocation --num-ilds --update-partition --reset-partition --remove-partition
--numa-aware --sync-type --executable-cache-path --only-output-from-instance --only-stdout-from-instance
--print-topology --offline-mode
""".split()
_FLAGS_WITHOUT_EFFECT = ["-v", "-vv", "-vvv", "--vv", "--vvv", "--tag-output"]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Start all instances, wait for them, and return the first exit status that is not 0; one failure ends them all."""
    parser = argparse.ArgumentParser(prog="poprun", description=__doc__.split("\n")[0])
    parser.add_argument("--num-instances", type=int, required=True, help="processes to start")
    parser.add_argument("--num-replicas", type=int, required=True, help="replicas of all processes together")
    parser.add_argument("--ipus-per-replica", type=int, default=1, help="IPUs of one replica")
    for name in _WITHOUT_EFFECT:
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in _FLAGS_WITHOUT_EFFECT:
        parser.add_argument(name, action="store_true", dest=f"flag{name}", help=argparse.SUPPRESS)
    parser.add_argument("program", nargs=argparse.REMAINDER, help="the program and its arguments")
    chosen = parser.parse_args(arguments)
    unused = [name for name in _WITHOUT_EFFECT if getattr(chosen, name[2:].replace("-", "_")) is not None]
    if unused:
        print(f"poprun: no effect on the emulator: {', '.join(unused)}", file=sys.stderr)
    if not chosen.program:
        parser.error("no program given")
    if chosen.num_instances < 1 or chosen.num_replicas < 1 or chosen.num_replicas % chosen.num_instances:
        parser.error(
            f"--num-replicas {chosen.num_replicas} is not a multiple of --num-instances {chosen.num_instances}: "
            "every instance runs the same number of replicas"
        )
    program = list(chosen.program)
    if not os.path.basename(program[0]).startswith("python"):
        program.insert(0, sys.executable)
    port = _free_port()
    running: List[subprocess.Popen] = []
    try:
        for index in range(chosen.num_instances):
            variables = _variables(index, chosen.num_instances, chosen.num_replicas, chosen.ipus_per_replica, port)
            running.append(subprocess.Popen(program, env={**os.environ, **variables}))
        return _wait(running)
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _variables(index: int, instances: int, replicas: int, ipus_per_replica: int, port: int) -> Dict[str, str]:
    """Return the environment of one instance: poprun's variables, OpenMPI's, and where the instances meet."""
    local = replicas // instances
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.environ.get("PYTHONPATH", "")
    if os.path.basename(here) not in ("site-packages", "dist-packages"):  # not installed: programs must find it
        path = f"{here}{os.pathsep}{path}" if path else here
    return {
        "POPDIST_NUM_TOTAL_REPLICAS": str(replicas),
        "POPDIST_NUM_LOCAL_REPLICAS": str(local),
        "POPDIST_NUM_IPUS_PER_REPLICA": str(ipus_per_replica),
        "POPDIST_UNIFORM_REPLICAS_PER_INSTANCE": "1",
        "POPDIST_REPLICA_INDEX_OFFSET": str(index * local),
        "POPDIST_LOCAL_INSTANCE_INDEX": str(index),
        "OMPI_COMM_WORLD_SIZE": str(instances),
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // instances))),
        "PYTHONPATH": path,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(running: List[subprocess.Popen]) -> int:
    while True:
        statuses = [process.poll() for process in running]
        failed = [status for status in statuses if status]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if all(status == 0 for status in statuses):
            return 0
        time.sleep(0.05)


def console() -> None:
    """Run the command `poprun`."""
    sys.exit(main())


if __name__ == "__main__":
    console()
