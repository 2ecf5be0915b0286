"""Commands end with one line at Ctrl-C, and say what could not be printed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAITING = """
import os, signal, sys, time
from configs.command_line import run_command
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs begin without
def main():
    os.write(1, b"ready")
    time.sleep(3600)
sys.exit(run_command(main))
"""
PRINTING = "import sys; from configs.command_line import run_command; sys.exit(run_command(lambda: print('result')))"


def test_ctrl_c_ends_a_command_with_one_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.read(5) == b"ready"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert (process.returncode, said) == (130, b"stopped\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_cannot_be_printed_is_an_error(monkeypatch: pytest.MonkeyPatch, unbuffered: str) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTING], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (74, b"error: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_none(monkeypatch: pytest.MonkeyPatch, unbuffered: str) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    script = f'"{sys.executable}" -c "{PRINTING}" | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"0\n", b"")


def test_what_is_logged_commands_no_terminal_and_tells_no_password() -> None:
    code = "import logging; from configs.command_line import *; log_to_console(logging.INFO);"
    code += "logging.getLogger('a').info('%s of %s', 'x\\x1b[2J', 'https://u:secret@host/')"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, check=True).stderr
    assert said == b"x\\x1b[2J of https://u:***@host/\n"
