"""The group of processes, in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.errors import LostProcessError
from backends.process_group import explained_loss

ROOT = Path(__file__).resolve().parent.parent.parent


def test_processes_that_are_started_again_do_not_meet_those_that_are_gone(tmp_path: Path) -> None:
    """torchrun keeps its store: what the first start wrote there, addresses too, is not for the second."""
    program = tmp_path / "program.py"
    program.write_text("""
import os, sys
import torch.distributed as dist
from backends import process_group
process_group.join("gloo")
store, start = dist.distributed_c10d._get_default_store(), os.environ["TORCHELASTIC_RESTART_COUNT"]
print("start", start, "finds", store.check(["address"]), flush=True)
store.set("address", start)
process_group.leave()
sys.exit(start == "0")
""")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1", str(program)]
    done = subprocess.run(
        launcher, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.stdout.splitlines() == ["start 0 finds False", "start 1 finds False"], done.stderr


SEEN = [
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3164. GLHF!",
    "Gloo connectFullMesh failed with [x.cc:1] no error",
    "NCCL communicator was aborted on rank 1.",
]


@pytest.mark.parametrize("seen", SEEN)
def test_a_lost_process_is_one_line(seen: str) -> None:
    with pytest.raises(
        LostProcessError, match=r"^another process of the run ended .*--resume"
    ) as caught, explained_loss():
        raise RuntimeError(f"{seen}\nException raised from ...")
    assert "\n" not in str(caught.value) and "pair.cc" not in str(caught.value)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"), explained_loss():
        raise RuntimeError("shapes do not match")
