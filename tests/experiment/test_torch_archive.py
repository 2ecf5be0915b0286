"""Files of weights: code in them is refused and not run, whatever they are called."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import torch
from planted_code import (
    Nested,
    Payload,
    bare_pickle,
    legacy_stream,
    legacy_tar,
    odd_name,
    pickled,
    with_records,
)
from torch import nn

from experiment.checkpoint import load_checkpoint
from experiment.pickled_growth import refuse_growth
from experiment.weights_file import read_weights
from training.weights import CheckpointError


def doubled(canary: Path) -> bytes:
    """Return two records called data.pkl: which one is read differs between readers."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        return with_records(
            pickled({"w": torch.ones(1)}), {"archive/data.pkl": pickle.dumps(Payload(canary), protocol=2)}
        )


def compressed(canary: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(pickled(Payload(canary)))) as archive:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in archive.namelist():
                packed.writestr(name, archive.read(name))
    return buffer.getvalue()


def behind_another_file(canary: Path) -> bytes:
    """Return what Python takes for an archive and torch for a bare pickle."""
    return pickle.dumps(Payload(canary), protocol=2) + pickled({"w": torch.ones(1)})


def pickled_as(code: bytes) -> bytes:
    return with_records(b"", {"archive/data.pkl": code, "archive/version": b"3\n", "archive/byteorder": b"little"})


def stack_global_from_memo(canary: Path) -> bytes:
    """Protocol 4 whose last two texts are of torch, while the stack holds os and system."""
    text = lambda words: b"\x8c" + bytes([len(words)]) + words  # noqa: E731
    code = b"\x80\x04" + text(b"os") + b"\x94" + text(b"system") + b"\x94" + text(b"torch._utils") + b"0"
    code += text(b"_rebuild_tensor_v2") + b"000" + b"h\x00h\x01\x93" + text(f"touch {canary}".encode()) + b"\x85R."
    return pickled_as(code)


def torch_script(canary: Path) -> bytes:
    """Return a program of torch.jit, which is not code of Python but is none of weights either."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    return buffer.getvalue()


def of_torch_names(canary: Path) -> bytes:
    inner = canary.parent / "inner.pt"
    inner.write_bytes(pickled(Payload(canary)))
    return pickled({"w": Nested(inner)})


WEIGHTS = [odd_name, doubled, compressed, behind_another_file, legacy_tar, legacy_stream, stack_global_from_memo]
WEIGHTS += [torch_script, bare_pickle, of_torch_names]


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin", "safetensors"])
@pytest.mark.parametrize("make", WEIGHTS, ids=[make.__name__ for make in WEIGHTS])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_code_among_weights_is_refused_and_not_run(tmp_path: Path, make: Callable[[Path], bytes], suffix: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / f"weights.{suffix}"
    path.write_bytes(make(canary))
    with pytest.raises(CheckpointError, match=str(path)):
        read_weights(path)
    assert not canary.exists()


@pytest.mark.parametrize("make", [bare_pickle, behind_another_file])
def test_python_alone_would_run_these_weights(tmp_path: Path, make: Callable[[Path], bytes]) -> None:
    pickle.loads(make(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


def test_a_memo_hides_the_name_from_a_scan_of_texts_and_python_runs_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(stack_global_from_memo(tmp_path / "canary"))) as archive:
        pickle.loads(archive.read("archive/data.pkl"))
    assert (tmp_path / "canary").exists()


def in_one_another(depth: int, copies: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value] * copies
    return value


def held_by_itself() -> Any:
    value: Any = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (in_one_another(40, copies=2), "repeat themselves to more than"),  # 2^40 lists
        (in_one_another(200, copies=1), "more than 100 deep"),
        ([in_one_another(60, copies=1), [in_one_another(60, copies=1)]], None),
        (held_by_itself(), "contain themselves"),
    ],
    ids=["a bomb", "deep", "not so deep", "a circle"],
)
def test_entries_that_repeat_themselves_without_end_are_refused(tmp_path: Path, value: Any, told: str) -> None:
    path = tmp_path / "step_00000001.pt"
    path.write_bytes(pickled({"format": value, "model": {"w": torch.ones(1)}}))
    # What is refused nowhere else is a format that is not 3, in few words.
    with pytest.raises(CheckpointError, match=told or "has checkpoint format a list of 2, and") as caught:
        load_checkpoint(path)
    assert len(str(caught.value)) < 400 + len(str(path))


def tuples_in_one_another(depth: int) -> bytes:
    """Instructions that put down a tuple of 2^depth entries."""
    code = b")q\0"
    for number in range(depth):
        code += b"h%ch%c\x86q%c" % (number, number, number + 1)
    return code


BOMB = tuples_in_one_another(24)  # 17 million entries: whoever hashes them in a test that fails comes to an end


@pytest.mark.parametrize(
    "code",
    [
        b"}" + BOMB + b"K\x01s",
        b"}(" + BOMB + b"K\x01u",
        b"ccollections\nOrderedDict\n](" + BOMB + b"K\x01\x86e\x85R",
        b"ccollections\nCounter\n](" + BOMB + b"e\x85R",
        b"c__builtin__\nset\n](" + BOMB + b"e\x85R",
        b"\x8f(" + BOMB + b"\x90",
        b"(" + BOMB + b"\x91",
        b"(" + BOMB + b"K\x01K\x01K\x01K\x01tQ",
        b"ctorch\nSize\n" + BOMB + b"\x85R",
        b"ccollections\nOrderedDict\n)R" + BOMB + b"b",
        b"(l" + BOMB + b"a",
        b"(" + BOMB + b"cargparse\nNamespace\n" + BOMB + b"o",
    ],
    ids="SETITEM SETITEMS OrderedDict Counter set EMPTY_SET FROZENSET BINPERSID Size BUILD LIST OBJ".split(),
)
def test_entries_that_unpickling_itself_walks_through_are_counted_before_it(tmp_path: Path, code: bytes) -> None:
    """What is hashed or printed while it is read: a key, an entry of a set, an argument, the name of a storage."""
    path = tmp_path / "x.pt"
    path.write_bytes(pickled_as(b"\x80\x02" + code + b"."))
    with pytest.raises(CheckpointError, match="its entries repeat themselves to more than"):
        read_weights(path)


def test_objects_that_know_what_holds_them_are_no_circle() -> None:
    """Settings of omegaconf hold their parent in their state, which is not read."""
    code = b"\x80\x02}q\0X\1\0\0\0acargparse\nNamespace\n)\x81q\1}X\6\0\0\0parenth\0sbs."
    refuse_growth(code, most=len(code))


@pytest.mark.parametrize("code", [b"s.", b"}s.", b"h\x05.", b"(K\x01s.", b"u.", b"(", b""])
def test_instructions_that_take_what_was_not_put_down_are_an_error(code: bytes) -> None:
    with pytest.raises(ValueError):
        refuse_growth(b"\x80\x02" + code, most=100)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: pickled({"w": torch.zeros(1).expand(1 << 40)}), r"a tensor of \(1099511627776,\), which is more than"),
        (lambda: with_records(b"", {"/etc/data.pkl": b"\x80\x02}."}), "it has no record data.pkl in a folder"),
        (lambda: with_records(b"", {f"a/{number}": b"" for number in range(20_001)}), "it has 20,001 records, over"),
        (lambda: bytes(12), r"it begins with b'\\x00"),
        (lambda: b"", r"it begins with b''"),
    ],
    ids=["expanded", "of other names", "many records", "zeros", "empty"],
)
def test_what_is_no_archive_of_weights_is_told(tmp_path: Path, make: Callable[[], bytes], told: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=told):
        read_weights(path)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"{}", "it holds no tensors"),
        (b'{"w":' + b"[" * 100_000, None),
        (b'{"w":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,0]}}', None),
    ],
)
def test_headers_of_safetensors_that_are_none_are_told(tmp_path: Path, header: bytes, told: Optional[str]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=told or "cannot be read as safetensors"):
        read_weights(path)


def test_a_tensor_that_stands_twice_in_a_safetensors_file_is_told(tmp_path: Path) -> None:
    entry = b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + entry + b"," + entry + b"}"
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="two of its entries are called 'w'"):
        read_weights(path)


def test_a_setting_that_many_groups_share_is_no_repetition(tmp_path: Path) -> None:
    betas = (0.9, 0.999)
    state = {"format": 0, "param_groups": [{"betas": betas, "lr": 0.1}] * 50}
    path = tmp_path / "shared.pt"
    path.write_bytes(pickled(state))
    with pytest.raises(CheckpointError, match="has checkpoint format 0"):
        load_checkpoint(path)
