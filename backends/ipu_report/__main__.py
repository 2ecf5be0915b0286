"""Runs the series and writes the report.

    python -m backends.ipu_report --system c600 --ipus 1

Takes minutes to an hour, most of it compilation. It stops at the first failure that later steps would only repeat, and
writes the report after every step. --device ipu_emulator tries the command itself, on small networks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from pydantic import ValidationError

from backends.ipu_report.series import MARK, Step, steps
from configs.arguments import output_file, positive
from configs.atomic_file import replace_file
from configs.exit_codes import REFUSED
from configs.explain import explain_options
from configs.schema.device import IpuConfig

ROOT = Path(__file__).resolve().parents[2]
_TAIL = 60  # lines of output that a failed step leaves in the report


def main(arguments: Optional[List[str]] = None) -> int:
    """Return 0 where every step passed, 1 where one failed, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        IpuConfig(system=options.system, ipus=options.ipus)
    except ValidationError as error:
        print(f"error: {explain_options(error)}", file=sys.stderr)
        return REFUSED
    series = steps(emulated=options.device == "ipu_emulator")
    report: Dict[str, Any] = {
        "machine": describe_machine(),
        "asked": {**vars(options), "output": str(options.output)},
        "steps": [],
    }
    blocked = ""
    for number, step in enumerate(series, 1):
        print(f"{number}/{len(series)} {step.name}: {step.expected} ...", flush=True)
        result = not_run(step, blocked) if blocked else run_step(step, options)
        if result["status"] == "failed" and not step.is_independent:
            blocked = step.name
        report["steps"].append(result)
        print(f"    {result['status']}, {result['seconds']:.0f} s{summary(result, options.device)}", flush=True)
        replace_file(options.output, (json.dumps(report, indent=1) + "\n").encode())
    failed = [each["name"] for each in report["steps"] if each["status"] == "failed"]
    print(f"{options.output} is the report: read it, then send it back ({', '.join(failed) or 'nothing'} failed)")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m backends.ipu_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    devices = ["ipu", "ipu_model", "ipu_emulator"]
    add("--device", choices=devices, default="ipu", help="default: %(default)s; see docs/ipu.md")
    add("--system", choices=["mk1", "mk2", "bow", "c600", "c2"], required=True, help="kind of the IPUs")
    add("--ipus", type=positive, required=True, help="all of them; 1 for a C600, 2 for a C2")
    add("--output", type=output_file, default="ipu_report.json", metavar="FILE", help="the report's file; overwritten")
    return parser


def run_step(step: Step, options: argparse.Namespace) -> Dict[str, Any]:
    """Run a step in a process and say how it ended."""
    command = [sys.executable, "-m", "backends.ipu_report.step", step.name, options.device, options.system]
    start = time.monotonic()
    process = subprocess.Popen(
        [*command, str(options.ipus)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=step.seconds)
        ended = f"exit code {process.returncode}"
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # its own group: a compiler's helpers end with it
        output, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        ended = f"no end after {step.seconds:.0f} s"
    lines = output.splitlines()
    found = [line[len(MARK) :] for line in lines if line.startswith(MARK)]
    result: Dict[str, Any] = {"name": step.name, "expected": step.expected, "seconds": time.monotonic() - start}
    if process.returncode == 0 and found:
        return {**result, "status": "passed", "found": json.loads(found[-1])}
    return {**result, "status": "failed", "ended": ended, "output": lines[-_TAIL:]}


def not_run(step: Step, blocked: str) -> Dict[str, Any]:
    """Return the result of a step that would only fail again."""
    return {"name": step.name, "expected": step.expected, "status": f"not run: {blocked} failed", "seconds": 0.0}


def summary(result: Dict[str, Any], device: str) -> str:
    """Return what to print of a result."""
    found = result.get("found", {})
    if found.get("refused_by_the_plan"):
        return "; not run, since the plan refuses it: " + "; ".join(found["refused_by_the_plan"])
    if "images_per_second" in found:
        low, middle, high = found["planned_images_per_second"]
        measured = f"{found['images_per_second']:,.0f} images/s"
        if device == "ipu_emulator":
            measured += " of the emulator, which says nothing about an IPU"
        return f"; {measured}, planned {middle:,.0f} ({low:,.0f} to {high:,.0f})"
    return f": {result['output'][-1]}" if result.get("output") else ""


def describe_machine() -> Dict[str, Any]:
    """Return what the report says of the machine: versions, cores, IPUs; no names of users, hosts or folders."""
    variables = ("POPLAR", "POPART", "POPTORCH", "IPUOF", "POPRUN", "POPDIST")
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "devices": _output("gc-info", "--device-count"),
        "sdk": _output("popc", "--version"),
        "variables_set": sorted(name for name in os.environ if name.startswith(variables)),
    }


def _output(*command: str) -> Optional[str]:
    """Return what a program prints; None where it is not here or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
