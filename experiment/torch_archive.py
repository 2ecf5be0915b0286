"""Archives of torch.save and torch.export.save, looked at before torch reads them: nothing in them is run or unpacked.

torch stores: it never compresses. So the bytes of an archive's records are no more than those of the file, and a
small file cannot grow in memory.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from typing import Any, Dict, Iterator, List, Set, Tuple

import torch

from experiment.pickled_growth import refuse_growth

# What a dictionary of tensors needs. torch.load(weights_only=True) has a list of its own; this one does not depend on
# the version of torch, and names what is refused.
_TENSOR_NAMES = re.compile(
    r"torch\.(?:[A-Z]\w*Storage|Size|Tensor|device|bool|bfloat16|(?:q?u?int|float|complex)\d\w*)"
    r"|torch\._utils\._rebuild_\w+|collections\.(?:OrderedDict|Counter)"
)

# What training scripts save beside tensors, and is not needed to read them: settings, dates, paths, random states. In
# place of each stands an object that holds nothing and does nothing; the class of that name is never imported.
_INERT_NAMES = re.compile(
    r"argparse\.Namespace|typing\.Any|collections\.defaultdict|_codecs\.encode"
    r"|__builtin__\.(?:set|frozenset|dict|list|tuple|int|long|float|complex|bool|str|unicode|bytearray|slice|range)"
    r"|pathlib\.(?:Pure)?(?:Posix|Windows)?Path|datetime\.(?:datetime|date|time|timedelta|timezone)"
    r"|numpy\.(?:dtype|ndarray|dtypes\.\w+|_?core\.multiarray\.(?:scalar|_reconstruct))"
    r"|omegaconf\.(?:dictconfig\.DictConfig|listconfig\.ListConfig|base\.\w+|nodes\.\w+)"
    r"|(?:pytorch_lightning|lightning)\.(?:\w+\.)*callbacks\.(?:\w+\.)*[A-Z]\w+"
)
_INERT_DICTIONARIES = re.compile(r"(?:pytorch_lightning|lightning|lightning_fabric)\.(?:\w+\.)*AttributeDict")
_CHARACTERS_SHOWN = 300
MAX_RECORDS = 20_000  # one for each tensor; the largest network here has 1,000
_INERT_SINCE = (2, 6)  # torch's unpickler takes another class for a name


class Inert:
    """Takes the place of an object in a file that is not needed."""

    __slots__ = ()

    def __new__(cls, *arguments: Any, **settings: Any) -> Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class RefusedError(ValueError):
    """An archive that asks for more than tensors; the message names what it asks for. Nothing of it was run."""


def load_tensors(data: bytes) -> Any:
    """Return what torch.save put into an archive, on the CPU: tensors and builtins. Nothing in it is run.

    Objects of a few harmless kinds, such as the argparse.Namespace that training scripts save beside the weights, are
    not created: an Inert takes the place of each.

    Raises:
        RefusedError: it asks for code to be run.
        ValueError, zipfile.BadZipFile and others for bytes that are torn or no such archive.
    """
    # First: a bare pickle is refused for what it would import, and then for being one.
    try:
        inert = refuse_globals(data)
    except RefusedError:
        raise
    except Exception:  # torn instructions, or none: what is no archive at all is told to be none
        open_archive(data)
        raise
    archive = open_archive(data)
    if not any(name.count("/") == 1 and name.endswith("/data.pkl") for name in archive.namelist()):
        raise ValueError("it has no record data.pkl in a folder, as torch.save writes it")
    refuse_damage(archive)
    for pickled in _pickles(data):
        refuse_growth(pickled, most=len(data))
    with _standing_for(inert):
        try:
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # with advice that leads to running what the file says
            raise ValueError(str(error).rpartition("WeightsUnpickler error: ")[2].strip()) from error
    for tensor in _tensors(loaded):
        if tensor.numel() * tensor.element_size() > len(data):
            raise ValueError(
                f"it has a tensor of {tuple(tensor.shape)}, which is more than the {len(data):,} bytes of the file: "
                "its numbers stand for others too; save tensor.clone()"
            )
    return loaded


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)


def refuse_damage(archive: zipfile.ZipFile) -> None:
    """Refuse a record whose bytes do not match the sum (CRC-32) in the archive, which torch does not compare.

    Raises:
        ValueError: as said.
    """
    try:
        damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError) as error:  # its own header differs from the archive's index
        raise ValueError(f"it is damaged: {first_line(error)}") from error
    if damaged is not None:
        raise ValueError(
            f"its record {damaged!r} is damaged: its bytes do not match the sum (CRC-32) written with them"
        )


@contextlib.contextmanager
def _standing_for(names: Set[str]) -> Iterator[None]:
    """Inside, torch's unpickler makes an inert object where a file asks for one of these names."""
    if not names:
        yield
        return
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _INERT_SINCE:
        raise ValueError(
            f"it holds {min(names)} beside its tensors, which is harmless, but torch {torch.__version__} cannot leave "
            "it out; use torch 2.6 or later, or save the state dict alone"
        )
    stand_ins = [(_stand_in(name), known) for name in sorted(names) for known in (name, _name_of_today(name))]
    with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]  # pairs, since torch 2.6
        yield


def open_archive(data: bytes) -> zipfile.ZipFile:
    """Return the archive in `data`, whose records are as many bytes as they say, and together no more than `data`.

    Raises:
        ValueError: no archive of torch, or one with compressed, doubled or overlapping records.
    """
    # torch looks at the first bytes, Python at the last: a file of two kinds is read as one by both, or not at all.
    if not data.startswith(b"PK\3\4") or not zipfile.is_zipfile(io.BytesIO(data)):
        raise ValueError(
            f"it is not the zip archive that torch.save has written since torch 1.6: it begins with {data[:12]!r}"
        )
    archive = zipfile.ZipFile(io.BytesIO(data))
    records = archive.infolist()
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise ValueError(
                f"record {record.filename!r} is compressed, {record.file_size:,} bytes in {record.compress_size:,}; "
                "torch compresses none: load it where you trust it, and save it again with torch.save"
            )
    if len(records) > MAX_RECORDS:
        raise ValueError(f"it has {len(records):,} records, over the limit of {MAX_RECORDS:,}")
    total = sum(record.file_size for record in records)
    if total > len(data):
        raise ValueError(f"its records claim {total:,} bytes, and the file has {len(data):,}")
    if len({record.filename for record in records}) < len(records):
        raise ValueError("two of its records have the same name")
    return archive


def read_records(data: bytes) -> Dict[str, bytes]:
    """Return the records of an archive by name, without the folder that torch puts all of them in.

    Raises:
        ValueError: as open_archive; records that are damaged or in other folders.
        zipfile.BadZipFile: records that are damaged.
    """
    archive = open_archive(data)
    root = archive.namelist()[0].partition("/")[0] + "/" if archive.namelist() else ""
    outside = [name for name in archive.namelist() if not name.startswith(root)]
    if outside:
        raise ValueError(f"its record {outside[0]!r} is outside of the folder {root!r} of the others")
    return {name[len(root) :]: archive.read(name) for name in archive.namelist()}


def _name_of_today(name: str) -> str:
    """Return what torch looks for: its pickles have the names of Python 2."""
    module, _, kind = name.rpartition(".")
    module, kind = NAME_MAPPING.get((module, kind), (IMPORT_MAPPING.get(module, module), kind))
    return f"{module}.{kind}"


def _stand_in(name: str) -> Any:
    if name == "collections.defaultdict":  # called with a class, and then filled
        return _empty_dictionary
    return OrderedDict if _INERT_DICTIONARIES.fullmatch(name) else Inert


def _empty_dictionary(*arguments: Any) -> Dict[Any, Any]:
    return {}


def refuse_globals(data: bytes) -> Set[str]:
    """Return the harmless names, besides those of tensors, that bytes would import when they are unpickled.

    They are read from the instructions, without running any of them.

    Args:
        data: a file of torch.save (a zip archive with pickles in it), or a bare pickle.

    Raises:
        RefusedError: any other name; also what pickletools and zipfile raise for bytes that are torn or neither of
            these.
    """
    inert: Set[str] = set()
    for name, is_certain in _imported_names(data):
        if is_certain and (_INERT_NAMES.fullmatch(name) or _INERT_DICTIONARIES.fullmatch(name)):
            inert.add(name)
        elif not is_certain or not _TENSOR_NAMES.fullmatch(name):
            raise RefusedError(
                f"asks for the global {name}: refused, nothing was run. Do not trust this file; if you made it "
                "yourself, save model.state_dict() alone"
            )
    return inert


def _imported_names(data: bytes) -> Iterator[Tuple[str, bool]]:
    """Yield what is imported, as "module.name", and whether that is certain."""
    for pickled in _pickles(data):
        strings: List[str] = []
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", "."), True
            elif opcode.name == "STACK_GLOBAL":
                # What it imports is on the stack, which only running it tells for certain. Protocol 4 alone has it;
                # torch.save writes protocol 2.
                yield ".".join(strings[-2:]), False
            elif opcode.name.startswith("EXT"):
                yield f"copyreg extension {argument}", False
            elif isinstance(argument, str):
                strings.append(argument)


def _pickles(data: bytes) -> List[bytes]:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return [data]
    archive = open_archive(data)
    return [archive.read(name) for name in archive.namelist() if name.lower().endswith((".pkl", ".pickle"))]


def first_line(error: BaseException) -> str:
    """Return what to print of an error caused by unknown bytes: its first line, cut, or its class if it has none."""
    lines = str(error).splitlines()
    return lines[0][:_CHARACTERS_SHOWN] if lines else type(error).__name__
