"""Puts the emulator's packages on the path, and keeps the environment's choices out of the tests."""

import os
import sys
from pathlib import Path

import pytest

EMULATOR = str(Path(__file__).parents[2] / "emulator")
if EMULATOR not in sys.path:
    sys.path.insert(0, EMULATOR)

VARIABLES = ("POPTORCH_", "POPDIST_", "OMPI_COMM_WORLD")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(VARIABLES)]:
        monkeypatch.delenv(name)
