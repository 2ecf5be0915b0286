"""Checkpoints under crashes, full disks, damage and attack; and weights, norms and random states that they carry."""

from __future__ import annotations

import datetime
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from configs.atomic_file import DiskFullError, replace_file
from experiment import manifest, weights_file
from experiment.checkpoint import (
    CRASH_POINTS,
    check_norm,
    load_checkpoint,
    newest_checkpoint,
    remove_partial_files,
    save_checkpoint,
)
from experiment.progress import Progress
from experiment.weights_file import read_weights
from training.weights import CheckpointError, load_model_state

ROOT = Path(__file__).resolve().parents[2]


def make_state(step: int, **changes: Any) -> Dict[str, Any]:
    sums = torch.tensor([2.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    state = {
        "model": {"weight": torch.full((4, 4), float(step)), "half": torch.tensor([0.1], dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "average": None,
        "step": step,
        "progress": {
            **Progress().state(),
            **{"step": step, "interval": sums, "epoch": sums.clone(), "best_top1": 0.5, "seconds": 1.25},
        },
        "seed": 1,
        "config": {"model": {"name": "resnet20", "width": None}, "run": {"seed": 1}},
        "norm": {"name": "group", "num_groups": 8, "grouping": "contiguous"},
        "execution": {"torch": "2", "threads": 1},
        "class_names": ["a", "b"],
        "data_fingerprint": "abc",
    }
    return {**state, **changes}


def names(folder: Path) -> List[str]:
    """Of the files; what is drawn in the name of a temporary one is left out."""
    return sorted(re.sub(r"\.[0-9a-f]{16}\.partial$", ".partial", path.name) for path in folder.iterdir())


def pair(*steps: int) -> List[str]:
    return sorted(f"step_{step:08d}.{suffix}" for step in steps for suffix in ("json", "pt"))


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right):
            assert_same(one, other)
    else:
        assert left == right


# --- saving and finding ---------------------------------------------------------------------------------------------


def test_a_saved_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    config = {"run": {"seed": 2**40}, "nested": {"values": [(1, None), {"x": -0.0}], "text": "ä"}}
    state = make_state(3, seed=2**40, config=config)
    path = save_checkpoint(tmp_path / "checkpoints", state, 3, keep=2)
    assert path == tmp_path / "checkpoints" / "step_00000003.pt"
    loaded = load_checkpoint(path)
    assert loaded.pop("format") == 3
    assert_same(loaded, state)


def test_a_run_continued_from_a_checkpoint_equals_an_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    def build() -> Tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    model, optimizer = build()
    train(model, optimizer, 0, 6)
    half, half_optimizer = build()
    train(half, half_optimizer, 0, 3)
    state = make_state(3, model=half.state_dict(), optimizer=half_optimizer.state_dict())
    saved = load_checkpoint(save_checkpoint(tmp_path, state, 3, keep=1))
    resumed, resumed_optimizer = build()
    load_model_state(resumed, saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    train(resumed, resumed_optimizer, 3, 6)
    assert_same(dict(resumed.state_dict()), dict(model.state_dict()))
    assert_same(resumed_optimizer.state_dict(), optimizer.state_dict())


def test_the_newest_checkpoints_are_kept_and_found_by_step_not_by_clock(tmp_path: Path) -> None:
    for step in (9, 10, 11, 12):
        save_checkpoint(tmp_path, make_state(step), step, keep=2)
    assert names(tmp_path) == pair(11, 12)
    os.utime(tmp_path / "step_00000012.pt", (0, 0))
    assert newest_checkpoint(tmp_path) == tmp_path / "step_00000012.pt"


def test_saving_removes_the_checkpoints_of_an_abandoned_future(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make_state(step), step, keep=3)
    save_checkpoint(tmp_path, make_state(2), 2, keep=3)
    assert names(tmp_path) == pair(1, 2)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None
    remove_partial_files(tmp_path / "missing")


def test_a_view_is_saved_without_the_storage_behind_it(tmp_path: Path) -> None:
    big = torch.zeros(1_000_000)
    path = save_checkpoint(tmp_path, make_state(1, model={"weight": big[:2]}), 1, keep=1)
    assert path.stat().st_size < 20_000


REFUSED = [
    ("path", Path("/tmp"), "PosixPath"),
    ("numpy number", numpy.float64(0.5), "numpy.float64"),
    ("date", datetime.date(2021, 6, 7), "datetime.date"),
    ("set", {1}, "builtins.set"),
]


@pytest.mark.parametrize("name, value, kind", REFUSED, ids=[row[0] for row in REFUSED])
def test_values_that_safe_loading_would_refuse_are_refused_when_saving(
    tmp_path: Path, name: str, value: Any, kind: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"state\['config'\]\['a'\]\['b'\]\[1\] is a .*{kind}"):
        save_checkpoint(tmp_path, make_state(1, config={"a": {"b": [0, value]}}), 1, keep=1)
    assert not names(tmp_path)


def test_missing_and_unknown_keys_and_contradicting_steps_are_named(tmp_path: Path) -> None:
    state = make_state(1, extra=1)
    del state["seed"]
    with pytest.raises(CheckpointError, match=r"lacks the keys \['seed'\] and has the unknown keys \['extra'\]"):
        save_checkpoint(tmp_path, state, 1, keep=1)
    with pytest.raises(CheckpointError, match="is 1, but step is 2"):
        save_checkpoint(tmp_path, make_state(1), 2, keep=1)
    with pytest.raises(CheckpointError, match="keep 0"):
        save_checkpoint(tmp_path, make_state(1), 1, keep=0)


# --- crashes and full disks -----------------------------------------------------------------------------------------

SAVE = """
import sys, torch
from experiment.checkpoint import load_checkpoint, save_checkpoint
folder, step, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
state = load_checkpoint(sys.argv[4])
del state["format"]
state.update(step=step, model={"weight": torch.ones(size)})
state["progress"]["step"] = step
save_checkpoint(folder, state, step, keep=2)
"""


def save_elsewhere(folder: Path, step: int, size: int, source: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SAVE, str(folder), str(step), str(size), str(source)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_process_killed_inside_a_write_leaves_the_previous_checkpoint(tmp_path: Path, point: str) -> None:
    first = save_checkpoint(tmp_path, make_state(1), 1, keep=2)
    before = first.read_bytes()
    result = save_elsewhere(tmp_path, 2, 1000, first, PROXYNORM_CRASH_AT=point)
    assert result.returncode == -signal.SIGKILL, result.stderr
    left = {
        "before_write": [],
        "mid_write": [".step_00000002.pt.partial"],
        "before_replace": [".step_00000002.pt.partial"],
        "after_replace": ["step_00000002.pt"],
        "before_manifest": ["step_00000002.pt"],
    }[point]
    assert names(tmp_path) == sorted(left + pair(1))

    told: List[str] = []
    assert newest_checkpoint(tmp_path, tell=told.append) == first
    assert first.read_bytes() == before
    assert ["step_00000002.pt" in line and "never finished" in line for line in told] == [True] * left.count(
        "step_00000002.pt"
    )
    remove_partial_files(tmp_path)
    assert names(tmp_path) == pair(1)
    assert newest_checkpoint(tmp_path) == first


def test_a_crash_inside_the_first_write_of_all_starts_from_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_state(1), 1, keep=1)
    (tmp_path / "step_00000001.json").unlink()  # what a kill before the manifest leaves
    told: List[str] = []
    assert newest_checkpoint(tmp_path, tell=told.append) is None
    assert len(told) == 1


def test_an_unknown_crash_point_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYNORM_CRASH_AT", "midwrite")
    with pytest.raises(
        CheckpointError, match="PROXYNORM_CRASH_AT=midwrite is not a crash point; use one of before_write"
    ):
        save_checkpoint(tmp_path, make_state(1), 1, keep=1)


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_size_limit_is_told_with_its_bytes_and_the_old_checkpoint_stays(
    tmp_path: Path, file_size_limit: Callable[[int], None]
) -> None:
    first = save_checkpoint(tmp_path, make_state(1), 1, keep=2)
    file_size_limit(50_000)
    with pytest.raises(DiskFullError) as caught:
        save_checkpoint(tmp_path, make_state(2, model={"weight": torch.ones(100_000)}), 2, keep=2)
    assert str(tmp_path / "step_00000002.pt") in str(caught.value)
    needed, available = (int(word.strip(",")) for word in str(caught.value).split() if word.strip(",").isdigit())
    assert needed > 400_000 and available == 50_000
    assert names(tmp_path) == pair(1)
    assert newest_checkpoint(tmp_path) == first


def test_a_full_disk_is_told_with_its_bytes_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    disk, source = tmp_path / "disk", save_checkpoint(tmp_path / "source", make_state(1), 1, keep=1)
    disk.mkdir()
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"', str(disk)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("mounting a small tmpfs in a private mount namespace is not permitted here")
    script = SAVE + (
        "import os\nfrom configs.atomic_file import DiskFullError\n"
        "from experiment.checkpoint import newest_checkpoint\n"
        "state.update(step=2, model={'weight': torch.ones(1_000_000)}, progress={**state['progress'], 'step': 2})\n"
        "try:\n    save_checkpoint(folder, state, 2, keep=2)\n"
        "except DiskFullError as error:\n    print(error)\n"
        "print(sorted(os.listdir(folder)), newest_checkpoint(folder).name)\n"
    )
    command = [*mount, sys.executable, "-c", script, str(disk), "1", "1000", str(source)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    message, left = result.stdout.splitlines()
    assert message.startswith("disk full: need 40") and f"at {disk / 'step_00000002.pt'} (no space left)" in message
    assert 0 < int(message.split("have ")[1].split()[0]) < 2**20
    assert left == "['step_00000001.json', 'step_00000001.pt'] step_00000001.pt"


def test_a_failed_replacement_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    def fail(point: str) -> None:
        if point == "before_replace":
            raise OSError(5, "input/output error")

    replace_file(tmp_path / "a", b"old")
    with pytest.raises(OSError, match="input/output error"):
        replace_file(tmp_path / "a", b"new", passing=fail)
    assert (names(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"old")


# --- damage and attack ----------------------------------------------------------------------------------------------


def flip_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def other_tensor(data: bytes) -> bytes:
    state = torch.load(io.BytesIO(data), weights_only=True)
    state["model"]["weight"] += 1
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


DAMAGE: List[Tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty", lambda data: b"", "has 0 bytes, its manifest says"),
    ("truncated to 25 %", lambda data: data[: len(data) // 4], "truncated or altered"),
    ("truncated by one byte", lambda data: data[:-1], "truncated or altered"),
    ("one bit flipped", flip_bit, "hash mismatch"),
    ("intact archive with another tensor", other_tensor, "hash mismatch"),
]


@pytest.mark.parametrize("name, damage, message", DAMAGE, ids=[row[0] for row in DAMAGE])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_taken(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    first = save_checkpoint(tmp_path, make_state(1), 1, keep=2)
    second = save_checkpoint(tmp_path, make_state(2), 2, keep=2)
    second.write_bytes(damage(second.read_bytes()))
    told: List[str] = []
    assert newest_checkpoint(tmp_path, tell=told.append) == first
    assert len(told) == 1 and str(second) in told[0] and message in told[0]
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(second)


def test_missing_checkpoint_files_and_broken_manifests_fall_back_too(tmp_path: Path) -> None:
    first, second, third = (save_checkpoint(tmp_path, make_state(step), step, keep=3) for step in (1, 2, 3))
    second.unlink()
    third.with_suffix(".json").write_text('{"size": 3')
    told: List[str] = []
    assert newest_checkpoint(tmp_path, tell=told.append) == first
    assert "step_00000003.json is not a manifest" in told[0] and "step_00000002.pt cannot be read" in told[1]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, make_state(step), step, keep=2).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact: .*step_00000002.pt.*step_00000001.pt"):
        newest_checkpoint(tmp_path, tell=lambda message: None)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(position=st.floats(0, 1), junk=st.binary(min_size=1, max_size=40), cut=st.booleans())
def test_any_damaged_file_without_a_manifest_loads_or_is_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, position: float, junk: bytes, cut: bool
) -> None:
    buffer = io.BytesIO()
    torch.save({"format": 3, **make_state(1)}, buffer)
    data = buffer.getvalue()
    at = int(position * len(data))
    path = tmp_path_factory.mktemp("fuzz") / "copied.pt"
    path.write_bytes(data[:at] + junk + (b"" if cut else data[at + len(junk) :]))
    try:
        assert load_checkpoint(path)["format"] == 3
    except CheckpointError as error:
        assert str(path) in str(error)


class Attack:
    """Runs a shell command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Tuple[Callable[[str], int], Tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def in_archive(attack: Attack) -> bytes:
    buffer = io.BytesIO()
    torch.save({"format": 3, **make_state(1), "model": attack}, buffer)
    return buffer.getvalue()


ATTACKS: List[Tuple[str, Callable[[Attack], bytes]]] = [
    ("archive", in_archive),
    ("bare pickle, protocol 2", lambda attack: pickle.dumps(attack, protocol=2)),
    ("bare pickle, protocol 4", lambda attack: pickle.dumps({"format": attack}, protocol=4)),
]


@pytest.mark.parametrize("file_name", ["step_00000001.pt", "model.safetensors"])
@pytest.mark.parametrize("name, pack", ATTACKS, ids=[row[0] for row in ATTACKS])
def test_a_file_that_would_run_code_is_refused_by_name_and_nothing_runs(
    tmp_path: Path, name: str, pack: Callable[[Attack], bytes], file_name: str
) -> None:
    path, canary = tmp_path / file_name, tmp_path / "canary"
    path.write_bytes(pack(Attack(canary)))
    with pytest.raises(CheckpointError, match=r"asks for the global posix\.system: refused, nothing was run"):
        load_checkpoint(path)
    assert not canary.exists()


def test_the_attack_is_real(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Attack(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_files_that_are_no_archive_never_reach_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older torch versions unpickle them without a guard; so a harmless one is refused as well."""
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    path = tmp_path / "legacy.pt"
    torch.save({"format": 3, **make_state(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(path)


OTHER_FILES: List[Tuple[str, Any, str]] = [
    ("weights alone", {"weight": torch.ones(2)}, "not a checkpoint of this program: it has no entry 'format'"),
    ("a list", [1, 2], "not a checkpoint of this program"),
    ("a newer format", {"format": 4}, "has checkpoint format 4, and this program reads format 3"),
    ("missing keys", {"format": 3, "model": {}}, r"lacks the keys \['average', 'class_names', 'config'"),
]


@pytest.mark.parametrize("name, content, message", OTHER_FILES, ids=[row[0] for row in OTHER_FILES])
def test_other_files_of_tensors_are_told_apart(tmp_path: Path, name: str, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "other.pt")


def test_a_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt cannot be read: No such file"):
        load_checkpoint(tmp_path / "none.pt")


# --- what a checkpoint carries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_of_wrapped_models_load_into_plain_ones_and_back(prefix: str) -> None:
    saved, model = nn.Linear(3, 2), nn.Linear(3, 2)
    load_model_state(model, {prefix + name: tensor for name, tensor in saved.state_dict().items()})
    assert torch.equal(model.weight, saved.weight) and torch.equal(model.bias, saved.bias)
    inner = nn.Linear(3, 2)
    wrapped = nn.ModuleDict({"module": inner})  # the names that distributed training gives
    load_model_state(wrapped, saved.state_dict())
    assert torch.equal(inner.weight, saved.weight)


def test_weights_that_do_not_fit_are_listed_in_one_error_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    before = [parameter.clone() for parameter in model.parameters()]
    state = {"0.weight": torch.ones(2, 4), "0.bias": torch.ones(2), **{f"head.{i}": torch.ones(1) for i in range(7)}}
    with pytest.raises(CheckpointError) as caught:
        load_model_state(model, state)
    message = str(caught.value)
    assert "1 missing: 1.weight" in message
    assert "7 unexpected: head.0, head.1, head.2, head.3, head.4 and 2 more" in message
    assert "1 of another shape: 0.weight (saved (2, 4), here (2, 3))" in message
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters()))


def test_two_saved_entries_of_one_name_are_an_error() -> None:
    state = nn.Linear(1, 1).state_dict()
    with pytest.raises(CheckpointError, match="two saved entries are weight"):
        load_model_state(nn.Linear(1, 1), {**state, "module.weight": torch.ones(1, 1)})


def test_another_grouping_of_the_norm_is_refused_and_both_are_named() -> None:
    saved = {"name": "group", "num_groups": 4, "grouping": "strided"}
    check_norm(saved, dict(saved))
    with pytest.raises(CheckpointError, match="grouping 'strided' in the checkpoint, 'contiguous' here"):
        check_norm(saved, {**saved, "grouping": "contiguous"})
    with pytest.raises(CheckpointError, match=r"name 'group' in the .*, 'layer' here; num_groups 4 .* None here"):
        check_norm(saved, {**saved, "name": "layer", "num_groups": None})


@pytest.mark.parametrize(("now", "is_told"), [("group", True), ("layer", True), ("frn", False), ("none", False)])
def test_the_way_from_batch_norm_is_told_where_there_is_one(now: str, is_told: bool) -> None:
    with pytest.raises(CheckpointError) as error:
        check_norm({"name": "batch"}, {"name": now})
    assert ("model.calibration_images" in str(error.value)) == is_told


def test_a_manifest_tells_size_and_hash(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_state(7), 7, keep=1)
    manifest = json.loads(path.with_suffix(".json").read_text())
    digest = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert manifest == {"format": 3, "step": 7, "size": path.stat().st_size, "sha256": digest, "best": None}


def test_a_run_that_goes_on_takes_no_checkpoint_from_who_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes two more, and removes what was the newest, after that was chosen and before it is read."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        save_checkpoint(folder, make_state(step), step, keep=2)
    true, written = manifest.read, {"step_00000002.json": [3, 4]}

    def read_late(path: Path, most: int = manifest.MAX_CHECKPOINT_BYTES) -> bytes:
        for step in written.pop(path.name, []):
            save_checkpoint(folder, make_state(step), step, keep=2)
        return true(path, most)

    monkeypatch.setattr(manifest, "read", read_late)
    told: List[str] = []
    newest = newest_checkpoint(folder, tell=told.append)
    assert newest is not None and newest.name == "step_00000004.pt" and told == []
    chosen: List[Path] = []

    def remove_then(path: Path, *arguments: Any) -> Any:
        if not chosen:
            chosen.append(path)
            for step in (5, 6):
                save_checkpoint(folder, make_state(step), step, keep=2)
        return true_archive(path, *arguments)

    true_archive = weights_file.read_archive
    monkeypatch.setattr(weights_file, "read_archive", remove_then)
    saved = read_weights(tmp_path)
    assert [path.name for path in chosen] == ["step_00000004.pt"]
    assert (saved.step, float(saved.tensors["weight"][0, 0])) == (6, 6.0)
