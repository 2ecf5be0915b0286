"""What wandb is given of a run, its name and its id after each --resume, and what its threads may print."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from typing import Any, Dict, List

import pytest

import train
from experiment.wandb_tracker import ID_FILE, keep_threads_quiet, run_id

SMALL = ["--config", "generated_smoke", "--device", "cpu"]
for setting in ("data.num_train_images=64", "data.num_eval_images=20", "run.evaluate_training_images=0"):
    SMALL += ["--set", setting]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> List[Dict[str, Any]]:
    """Return what wandb.init is called with, in place of wandb."""
    calls: List[Dict[str, Any]] = []

    def init(**given: Any) -> Any:
        calls.append(given)
        return types.SimpleNamespace(log=lambda numbers, step: None, finish=lambda: None)

    wandb: Any = types.ModuleType("wandb")
    wandb.init, wandb.Settings = init, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return calls


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_resumed_run_is_the_same_run_there(tmp_path: Path, started: List[Dict[str, Any]], mode: str) -> None:
    arguments = [*SMALL, "--output-dir", str(tmp_path), "--set", f"run.wandb={mode}"]
    assert train.main([*arguments, "--set", "schedule.epochs=1"]) == 0
    assert train.main([*arguments, "--set", "schedule.epochs=2", "--resume", "--extend-epochs"]) == 0
    first, second = started
    assert first["id"] == second["id"] == (tmp_path / ID_FILE).read_text().strip()
    assert second.get("resume") == ("allow" if mode == "online" else None)


def test_runs_of_several_seeds_have_their_own_names(tmp_path: Path, started: List[Dict[str, Any]]) -> None:
    for seed in (0, 1):
        arguments = [*SMALL, "--output-dir", str(tmp_path / str(seed)), "--set", "run.wandb=offline"]
        assert train.main([*arguments, "--set", "schedule.epochs=1", "--set", f"run.seed={seed}"]) == 0
    assert [call["name"] for call in started] == ["generated_smoke", "generated_smoke-seed1"]
    assert started[0]["id"] != started[1]["id"]


def test_an_id_that_is_damaged_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / ID_FILE).write_bytes(b"\xff/../x")
    made = run_id(tmp_path)
    assert run_id(tmp_path) == made and len(made) == 16


def test_a_thread_of_wandb_that_fails_prints_no_traceback_and_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: List[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(str(args.exc_value)))
    keep_threads_quiet()
    for module in ("wandb.sdk.lib", "wandbox", "experiment.aside"):
        namespace: Dict[str, Any] = {"__name__": module}
        exec("def work(): raise OSError(__name__)", namespace)
        thread = threading.Thread(target=namespace["work"])
        thread.start()
        thread.join()
    assert printed == ["wandbox", "experiment.aside"]
