"""Where a result comes from: versions, commit, command and machine, so that runs can be compared later."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import torch

from backends.machine import machine_class
from configs.counted import counted
from configs.exit_codes import printable
from normact import __version__

ROOT = Path(__file__).resolve().parent.parent


def provenance(command: str) -> Dict[str, Any]:
    """Return what summary.json and config.yaml say about it. Without "commit" where the program lies in no repository.

    Args:
        command: as a shell would take it.
    """
    found = commit()
    return {
        "command": command,
        "versions": {
            "program": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        **({} if found is None else {"commit": found}),
        "machine": machine_class(),
        "threads": torch.get_num_threads(),
    }


def as_comment(origin: Dict[str, Any]) -> str:
    """`provenance` as comment lines of a YAML file, which may have no control characters."""
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    commit_words = f", commit {origin['commit']}" if "commit" in origin else ""
    lines = [
        *origin["command"].splitlines(),
        versions + commit_words,
        f"{origin['machine']}; {counted(origin['threads'], 'thread')}",
    ]
    return "".join(f"# {printable(line)}\n" for line in lines)


def commit() -> Optional[str]:
    """Return the program's commit, "with changes" where tracked files differ; None outside of a repository."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return None  # unpacked inside a repository of something else
        name = _git("rev-parse", "--short", "HEAD")
        return name + (" with changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
