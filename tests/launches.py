"""Two processes, started and ended again and again.

    python tests/launches.py --count 500

Whatever goes wrong between processes at their end goes wrong rarely. This counts: every command that several processes
run at once, by the real launcher, and (twenty times as often) forked from a process that has imported torch already,
which makes a launch take about a second. Each is the whole command in two processes with an end of their own.

The log keeps one line a launch; the same command goes on from there. The exit code is 1 if a launch failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ["train.py", "--config", "generated_smoke", "--set", "data.num_train_images=64", "--set"]
TRAIN += ["data.num_eval_images=10", "--set", "schedule.epochs=1", "--output-dir", "RUN"]
BATCH_NORM = ["--set", "norm.name=batch", "--set", "norm.proxy=false", "--set", "norm.num_groups=null"]
BATCH_NORM += ["--set", "batch.norm_batch_size=64"]
COMMANDS: Dict[str, List[str]] = {
    "train": [*TRAIN, "--device", "cpu"],
    "train, statistics shared": [*TRAIN, "--device", "cpu", *BATCH_NORM],
    "train on emulated IPUs": [*TRAIN, "--device", "ipu_emulator", "--set", "ipu.ipus=2"],
    "evaluate": ["evaluate.py", "DONE"],
    "analyze": ["analyze.py", "power", "--run", "DONE", "--num-images", "4", "--out", "OWN"],
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
POPDIST = [sys.executable, "-m", "popdist.run", "--num-instances", "2", "--num-replicas", "2"]
FORKED_PER_LAUNCHED = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="launches in the log at the end")
    parser.add_argument("--log", type=Path, default=ROOT / "build" / "launches.jsonl")
    parser.add_argument("--busy", type=int, default=2, help="processes that do nothing but keep cores busy")
    parser.add_argument("--only", choices=COMMANDS, help="one of the commands")
    options = parser.parse_args()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "emulator")]
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path[:2]))
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    parent, scratch = os.getpid(), Path(tempfile.mkdtemp())
    try:
        launch_all(options.log, options.count, [options.only] if options.only else list(COMMANDS), scratch)
    finally:
        if os.getpid() == parent:  # a forked process ends through here too
            shutil.rmtree(scratch)
            for process in spinning:
                process.kill()
    return summarize(options.log)


def launch_all(log: Path, count: int, names: Sequence[str], scratch: Path) -> None:
    """Add launches to the log until it has `count`."""
    done = scratch / "done"
    subprocess.run([sys.executable, *arguments_of("train", done, done)], check=True, stdout=subprocess.DEVNULL)
    for module in ("train", "analyze", "torch._dynamo", "matplotlib.pyplot"):  # once for all forked processes
        importlib.import_module(module)
    for number in range(len(read(log)), count):
        name, is_forked = names[number % len(names)], number // len(names) % (FORKED_PER_LAUNCHED + 1) != 0
        run = scratch / f"run{number}"
        arguments, start = arguments_of(name, run, done), time.monotonic()
        output, code = forked(arguments, scratch) if is_forked else launched(arguments)
        way = "forked" if is_forked else "launched"
        row = {"command": name, "way": way, "code": code, "seconds": round(time.monotonic() - start, 2)}
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(row if code == 0 else {**row, "output": output[-4000:]}) + "\n")
        for folder in (run, *scratch.glob(f"{run.name}-*")):
            shutil.rmtree(folder, ignore_errors=True)


def arguments_of(name: str, run: Path, done: Path) -> List[str]:
    """Return the command with its folders: of all processes together, of each, and of a finished run."""
    folders = {"RUN": str(run), "OWN": f"{run}-RANK", "DONE": str(done)}
    return [folders.get(word, word) for word in COMMANDS[name]]


def of_process(arguments: Sequence[str], rank: int) -> List[str]:
    return [word.replace("RANK", str(rank)) for word in arguments]


def launched(arguments: Sequence[str]) -> Tuple[str, int]:
    """Output and exit code under the launcher."""
    if of_process(arguments, 0) != list(arguments):  # no group: the launcher has nothing to add
        commands = [[sys.executable, *of_process(arguments, rank)] for rank in range(2)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        processes = [subprocess.Popen(command, text=True, **streams) for command in commands]  # type: ignore[call-overload]
        output = "".join(process.communicate()[0] for process in processes)
        return output, next((process.returncode for process in processes if process.returncode), 0)
    launcher = POPDIST if "ipu_emulator" in arguments else TORCHRUN
    result = subprocess.run([*launcher, *arguments], capture_output=True, text=True, check=False)
    return result.stdout + result.stderr, result.returncode


def forked(arguments: Sequence[str], scratch: Path) -> Tuple[str, int]:
    """Output of both processes, and the first of their exit codes that is not 0; negative for a signal."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    outputs = [scratch / f"output{rank}" for rank in range(2)]
    processes = []
    for rank, output in enumerate(outputs):
        process = os.fork()
        if process == 0:
            be_started(rank, output, meeting, of_process(arguments, rank))
        processes.append(process)
    statuses = [os.waitpid(process, 0)[1] for process in processes]
    codes = [-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status) for status in statuses]
    return "".join(output.read_text() for output in outputs), next((code for code in codes if code), 0)


def be_started(rank: int, output: Path, meeting: Dict[str, str], arguments: Sequence[str]) -> None:
    """Run the command in this forked process as a launcher's; it ends with the command."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(meeting)
    if "ipu_emulator" in arguments:
        os.environ.update(POPDIST_NUM_TOTAL_REPLICAS="2", POPDIST_NUM_LOCAL_REPLICAS="1")
        os.environ.update(POPDIST_NUM_IPUS_PER_REPLICA="1", POPDIST_REPLICA_INDEX_OFFSET=str(rank))
    else:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    sys.argv = list(arguments)
    runpy.run_path(arguments[0], run_name="__main__")
    raise SystemExit(0)


def read(log: Path) -> List[Dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def summarize(log: Path, width: Optional[int] = 28) -> int:
    """Print what the log counts."""
    launches: Counter = Counter()
    failures: Counter = Counter()
    for row in read(log):
        key = (row["command"], row["way"])
        launches[key] += 1
        failures[key] += row["code"] != 0
    for key in sorted(launches):
        print(f"{key[0]:<{width}}{key[1]:<10}{launches[key]:>5} launches {failures[key]:>4} failures")
    print(f"{'all':<{width}}{'':<10}{sum(launches.values()):>5} launches {sum(failures.values()):>4} failures")
    return 1 if sum(failures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
