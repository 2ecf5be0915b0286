"""Importing torchvision, with and without its compiled operators."""

import os
import subprocess
import sys
from pathlib import Path

FAKE_TORCHVISION = """
import torch
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("{message}")
assert hasattr(torch.ops.torchvision, "qnms")
"""
IMPORT_AND_CALL = """
import torch
from datasets.images.torchvision_import import torchvision
print(torchvision.__file__)
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError as error:
    print(error)
"""


def import_fake_torchvision(folder: Path, message: str) -> "subprocess.CompletedProcess[str]":
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(FAKE_TORCHVISION.format(message=message))
    root = Path(__file__).resolve().parents[2]
    inherited = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(root), inherited])}
    return subprocess.run(
        [sys.executable, "-c", IMPORT_AND_CALL], env=environment, cwd=root, capture_output=True, text=True, check=False
    )


def test_a_torchvision_that_lacks_its_operators_is_imported_and_their_use_explained(tmp_path):
    result = import_fake_torchvision(tmp_path, "operator torchvision::nms does not exist")
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) in result.stdout and "does not match the installed PyTorch" in result.stdout


def test_other_failures_to_import_torchvision_are_not_hidden(tmp_path):
    result = import_fake_torchvision(tmp_path, "another reason")
    assert result.returncode == 1 and "RuntimeError: another reason" in result.stderr
