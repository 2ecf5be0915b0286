"""How processes of a group end, in real processes: nothing aborts, nothing is lost, the exit code is the command's."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
POPDIST = [sys.executable, "-m", "popdist.run", "--num-instances", "2", "--num-replicas", "2"]
TRAIN = ["--config", "generated_smoke", "--set", "data.num_train_images=64", "--set", "data.num_eval_images=10"]
TRAIN += ["--set", "schedule.epochs=1"]

# Something that takes two seconds to be let go of. Python's interpreter is free meanwhile, and needed afterwards.
SLOW = """
import os, threading, time

begun = threading.Event()

class Slow:
    def __del__(self):
        is_main = threading.get_ident() == threading.main_thread().ident
        by = "the main thread" if is_main else "a thread of gloo"
        os.write(1, f"let go of by {by}\\n".encode())  # at once: other processes write there too
        begun.set()
        time.sleep(2)
"""
# A command whose group is left with a collective under way, of a tensor that nothing else holds: on the first process
# it cannot be done before the second takes part, so that a thread of gloo is the last to hold the tensor.
PENDING = """
import runpy, sys
from pathlib import Path
import torch
import torch.distributed as dist

destroy, meeting = dist.destroy_process_group, Path(sys.argv[1])

def destroy_with_a_collective_under_way():
    tensor = torch.ones(1)
    tensor.slow = Slow()
    while dist.get_rank() == 1 and not meeting.exists():
        time.sleep(0.01)
    is_first, _ = dist.get_rank() == 0, dist.all_reduce(tensor, async_op=True)
    del tensor, _
    if is_first:
        meeting.touch()
    destroy()

dist.destroy_process_group = destroy_with_a_collective_under_way
"""
RUN = """
sys.argv = ["train.py", *sys.argv[2:]]
runpy.run_path("train.py", run_name="__main__")
"""
# A command that leaves its group while gloo lets go of the tensor.
LETTING_GO = """
destroy_pending = dist.destroy_process_group

def destroy_and_see_it_let_go():
    destroy_pending()
    assert begun.wait(600)

dist.destroy_process_group = destroy_and_see_it_let_go
"""
# The group has another holder: it cannot be left whole.
HELD = (
    LETTING_GO
    + """
held, leave_it = [], dist.destroy_process_group

def hold_and_leave():
    held.append(dist.group.WORLD)
    leave_it()

dist.destroy_process_group = hold_and_leave
"""
)
# An error whose traceback is the last to hold DistributedDataParallel, which holds the group.
FAILING = (
    LETTING_GO
    + """
from torch.nn.parallel import DistributedDataParallel
from backends import process_group
from experiment.ending import end_with

def fail():
    parallel = DistributedDataParallel(torch.nn.Linear(2, 2))
    try:
        raise KeyError("a defect of the program")
    finally:
        process_group.leave()

def main():
    process_group.join("gloo")
    try:
        fail()
    except KeyError:
        pass
    return 5

end_with(main)
"""
)
INSTANCE = """
import popdist
popdist.init()
"""


def environment() -> Dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "emulator")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def started(launcher: List[str], program: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [*launcher, str(program), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), text=True, capture_output=True, timeout=800, check=False
    )


@pytest.mark.parametrize(
    ("launcher", "text", "arguments"),
    [
        (TORCHRUN, RUN, [*TRAIN, "--device", "cpu"]),
        (TORCHRUN, HELD + RUN, [*TRAIN, "--device", "cpu"]),
        (POPDIST, RUN, [*TRAIN, "--device", "ipu_emulator", "--set", "ipu.ipus=2"]),
        (POPDIST, INSTANCE, []),
    ],
    ids=["train.py", "train.py whose group is held", "train.py on emulated IPUs", "a program of popdist alone"],
)
def test_two_processes_end_as_they_should_while_gloo_holds_a_tensor(
    tmp_path: Path, launcher: List[str], text: str, arguments: List[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(SLOW + PENDING + text)
    folder = ["--output-dir", str(tmp_path / "run")] if arguments else []
    done = started(launcher, program, str(tmp_path / "meeting"), *arguments, *folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "let go of by a thread of gloo" in done.stdout, "nothing was under way"
    assert "terminate" not in done.stderr


def test_an_error_does_not_make_a_process_wait_for_the_thread_that_waits_for_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SLOW + PENDING + FAILING)
    done = started(TORCHRUN, program, str(tmp_path / "meeting"))
    assert done.returncode == 1 and "exitcode  : 5" in done.stderr, done.stderr
    assert "let go of by a thread of gloo" in done.stdout, "nothing was under way"


def test_no_thread_of_gloo_outlives_the_run_and_nothing_warns(tmp_path: Path) -> None:
    """Statistics that are shared have a group of their own."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import sys, warnings
from pathlib import Path
import train
warnings.simplefilter("default")
code = train.main(sys.argv[1:])
names = {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
print("threads", *sorted(names), flush=True)
sys.exit(code)
"""
    )
    norm = ["--set", "norm.name=batch", "--set", "norm.proxy=false", "--set", "norm.num_groups=null"]
    norm += ["--set", "batch.norm_batch_size=64", "--device", "cpu", "--output-dir", str(tmp_path / "run")]
    done = started(TORCHRUN, program, *TRAIN, *norm)
    assert done.returncode == 0, done.stdout + done.stderr
    threads = [line for line in done.stdout.splitlines() if line.startswith("threads")]
    assert len(threads) == 2 and "shared by 2 replicas" in done.stdout
    assert not [line for line in threads if "gloo" in line]
    assert "Warning" not in done.stderr, done.stderr


# Each case in a process of its own that has torch already, and is in a group, of one process.
CASES = """
import atexit, ctypes, json, multiprocessing, os, sys
from pathlib import Path
from backends import process_group
from experiment.ending import end_with

def says_and_returns():
    process_group.join("gloo")
    print("said", end=" ")
    ctypes.CDLL(None).printf(b"printed ")
    atexit.register(print, "registered", end=" ")
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,), daemon=True).start()
    threading.Thread(target=lambda: (time.sleep(0.5), print("thread", end=" "))).start()
    return 3

def leaves_first():
    process_group.join("gloo")
    process_group.leave()
    return 4

def fails():
    process_group.join("gloo")
    raise KeyError("a defect of the program")

def is_interrupted():
    process_group.join("gloo")
    raise KeyboardInterrupt

def exits_with_a_word():
    process_group.join("gloo")
    sys.exit("refused")

def exits_with_a_number():
    process_group.join("gloo")
    sys.exit(7)

def fails_at_exit():
    process_group.join("gloo")
    atexit.register(lambda: 1 / 0)
    return 0

def is_alone():
    print("alone", end=" ")
    return 5

results = {}
for case in (says_and_returns, leaves_first, fails, is_interrupted, exits_with_a_word, exits_with_a_number,
             fails_at_exit, is_alone):
    output = Path(sys.argv[1], case.__name__)
    os.environ["MASTER_PORT"] = sys.argv[2]
    child = os.fork()
    if child == 0:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        end_with(case)
    status = os.waitpid(child, 0)[1]
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    results[case.__name__] = [code, output.read_text()]
Path(sys.argv[1], "results.json").write_text(json.dumps(results))
"""
EXPECTED: Dict[str, Tuple[int, List[str]]] = {
    "says_and_returns": (3, ["said", "printed", "registered", "thread"]),
    "leaves_first": (4, []),
    "fails": (1, ["Traceback", "KeyError: 'a defect of the program'"]),
    "is_interrupted": (130, ["stopped"]),
    "exits_with_a_word": (1, ["refused"]),
    "exits_with_a_number": (7, []),
    "fails_at_exit": (0, ["ZeroDivisionError"]),
    "is_alone": (5, ["alone"]),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    folder = tmp_path_factory.mktemp("ended")
    (folder / "program.py").write_text(SLOW + CASES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(folder / "program.py"), str(folder), port]
    done = subprocess.run(
        command, cwd=ROOT, env={**environment(), **place}, text=True, capture_output=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stderr
    results: Dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


@pytest.mark.parametrize("case", EXPECTED)
def test_a_process_of_a_group_ends_with_its_code_and_loses_no_word(ended: Dict[str, Any], case: str) -> None:
    code, parts = EXPECTED[case]
    assert ended[case][0] == code, ended[case]
    assert sorted(part for part in parts if part not in ended[case][1]) == []
    if not parts:
        assert ended[case][1] == ""
