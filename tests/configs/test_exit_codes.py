"""Exit codes: one table for all commands, whatever the order in which it is asked."""

import re
import signal
from pathlib import Path
from typing import Type

import pytest

from backends import DeviceError, LostProcessError
from configs import ConfigError
from configs.atomic_file import DiskFullError
from configs.exit_codes import ExplainedError, exit_code_of, exit_code_of_signal, explain
from datasets import DataError
from datasets.errors import StoreError
from experiment.run_folder import RunFolderError, RunFolderGoneError
from training.nonfinite import NonFiniteLossError
from training.weights import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
CODES = [
    (ConfigError, 2),
    (DeviceError, 2),
    (RunFolderError, 2),  # an OSError too
    (DataError, 3),
    (StoreError, 3),
    (CheckpointError, 4),
    (NonFiniteLossError, 5),
    (RunFolderGoneError, 74),
    (DiskFullError, 74),
    (FileNotFoundError, 74),
    (LostProcessError, 76),
    (KeyError, 1),
]


@pytest.mark.parametrize(("kind", "code"), CODES)
def test_each_error_has_one_exit_code(kind: Type[BaseException], code: int) -> None:
    assert exit_code_of(kind(1, 0.1, 2.0) if kind is NonFiniteLossError else kind("text")) == code


def test_every_error_that_is_explained_has_a_code_of_the_documented_table() -> None:
    table = (ROOT / "docs" / "training.md").read_text().split("| exit code | meaning |")[1].split("\n\n")[0]
    documented = {
        int(number) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for number in row.split(",")
    }

    def kinds(kind: Type[ExplainedError]) -> "set[Type[ExplainedError]]":
        return {kind}.union(*(kinds(below) for below in kind.__subclasses__()))

    assert {kind for kind, _ in CODES if issubclass(kind, ExplainedError)} <= kinds(ExplainedError)
    assert {kind.exit_code for kind in kinds(ExplainedError)} <= documented
    assert {exit_code_of_signal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)} <= documented


def test_ctrl_c_ends_with_130_and_every_other_signal_with_75() -> None:
    assert exit_code_of_signal(signal.SIGINT) == 130
    assert [exit_code_of_signal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == [75, 75]


def test_what_is_printed_of_an_error_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(CheckpointError("a tensor \x1b[2J\0é\nand another")) == 4
    assert capsys.readouterr().err == "error: a tensor \\x1b[2J\\x00é\nand another\n"


def test_what_is_printed_of_an_error_hides_its_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(DataError("https://user:secret@host/a cannot be read")) == 3
    assert capsys.readouterr().err == "error: https://user:***@host/a cannot be read\n"
