"""The plugin for pytest, in pytest processes of their own, and the emulator as an installed distribution."""

import os
import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

EMULATOR = Path(__file__).parents[2] / "emulator"
PROGRAM = """
import logging
import poptorch, pytest, torch
from poptorch._executor.compile_hooks import precompile_hooks

MODEL = torch.nn.Linear(2, 2)
LEVEL = logging.getLogger("poptorch::python").level


@pytest.fixture(scope="module")
def lasting():
    executor = poptorch.inferenceModel(torch.nn.Identity())
    executor(torch.ones(1))
    return executor


def train():
    class WithLoss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = MODEL

        def forward(self, x):
            return poptorch.identity_loss(self.model(x), "sum")

    return poptorch.trainingModel(WithLoss())


def test_one_leaves_executors_hooks_and_a_level(lasting):
    poptorch.trainingModel(MODEL)  # never compiled
    options = poptorch.Options().useIpuId(7)
    poptorch.inferenceModel(torch.nn.Identity(), options)(torch.ones(1))
    poptorch.registerPreCompileHook(lambda: None)
    poptorch.setLogLevel("OFF")
    global kept
    kept = poptorch.trainingModel(torch.nn.Linear(1, 1))


def test_the_next_finds_none_of_them(lasting):
    assert lasting.isAttachedToDevice()  # a fixture of the module
    assert not precompile_hooks
    assert logging.getLogger("poptorch::python").level == LEVEL
    poptorch.trainingModel(MODEL)
    options = poptorch.Options().useIpuId(7)
    poptorch.inferenceModel(torch.nn.Identity(), options)(torch.ones(1))


@pytest.mark.ipu_hardware
def test_what_needs_hardware():
    raise AssertionError("this is the emulator")
"""


def run_pytest(python, folder, *arguments, **variables):
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "", "PYTHONDONTWRITEBYTECODE": "1", **variables}
    environment = {name: value for name, value in environment.items() if value}
    command = [str(python), "-m", "pytest", "-q", "-rs", "--strict-markers", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def program(tmp_path):
    (tmp_path / "test_program.py").write_text(PROGRAM)
    return tmp_path


PLUGIN = ("-p", "poptorch_emulator.pytest_plugin")


def test_a_test_finds_nothing_of_the_one_before(program):
    done = run_pytest(sys.executable, program, *PLUGIN, PYTHONPATH=str(EMULATOR))
    assert "2 passed, 1 skipped" in done.stdout, done.stdout
    assert "needs a real IPU: PopTorch is emulated here" in done.stdout


def test_without_the_plugin_it_does(program):
    (program / "pytest.ini").write_text("[pytest]\nmarkers = ipu_hardware: any")
    done = run_pytest(sys.executable, program, "-k", "not hardware", PYTHONPATH=str(EMULATOR))
    assert "1 failed, 1 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("by", ["option", "setting"])
def test_the_log_level_can_be_chosen(tmp_path, by):
    (tmp_path / "test_level.py").write_text(
        "import logging\nimport poptorch\n\ndef test_level():\n"
        "    assert logging.getLogger('poptorch::python').level == logging.ERROR\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n" + ("poptorch_log_level = ERR" if by == "setting" else ""))
    options = ["--poptorch-log-level=ERR"] if by == "option" else []
    done = run_pytest(sys.executable, tmp_path, *PLUGIN, *options, PYTHONPATH=str(EMULATOR))
    assert done.returncode == 0, done.stdout


def test_tests_without_poptorch_do_not_import_it(tmp_path):
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_modules():\n    assert 'torch' not in sys.modules\n"
    )
    done = run_pytest(sys.executable, tmp_path, *PLUGIN, PYTHONPATH=str(EMULATOR))
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pip_installs_it_into_an_empty_environment(program):
    """With torch and pytest of this environment on the path: there is no network in tests."""
    source = program / "source"
    shutil.copytree(EMULATOR, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    home = program / "environment"
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    places = {Path(str(find_spec(name).origin)).parents[1] for name in ("torch", "pytest", "setuptools")}
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text("\n".join(str(place) for place in places))
    pip = [str(python), "-m", "pip"]
    install = [*pip, "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", str(source)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "PIP_"))}
    clean["PIP_CONFIG_FILE"] = os.devnull
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", "setuptools"], check=True, env=clean)  # an old one
    subprocess.run(install, check=True, env=clean)
    done = run_pytest(python, program, "test_program.py", PYTHONPATH="")
    assert "2 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    told = "import poptorch, poptorch_emulator as e; print(poptorch.__file__, poptorch.__version__, e.__version__)"
    said = subprocess.run(
        [str(python), "-c", told], check=True, env=clean, capture_output=True, text=True
    ).stdout.split()
    assert said[0].startswith(str(home)) and said[1] == "3.4.0" and said[2][0].isdigit() and "+" not in said[2]
    assert (packages / "poptorch" / "py.typed").exists()
    (program / "instance.py").write_text("import popdist; print(popdist.getInstanceIndex(), popdist.getNumInstances())")
    command = [str(home / "bin" / "poprun"), "--vv", "--host=a,b", "--num-instances=2", "--num-replicas", "2", "python"]
    path = {**clean, "PATH": f"{home / 'bin'}{os.pathsep}{clean['PATH']}"}
    done = subprocess.run([*command, "instance.py"], check=False, cwd=program, env=path, capture_output=True, text=True)
    assert sorted(done.stdout.split("\n"))[1:] == ["0 2", "1 2"], done
    assert "no effect on the emulator: --host" in done.stderr
