"""The house rules as a test: imports go one way, and only one file knows the IPU."""

import ast
import re
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
# room -> the rooms it may import, besides itself
MAY_IMPORT = {
    "configs": set(),
    "normact": set(),
    "models": {"configs", "normact"},
    "datasets": {"configs", "normact"},  # how C++ is built, of the layer
    "training": {"configs"},
    "backends": {"configs", "normact", "training"},
    "analysis": {"configs", "normact", "models"},
    "experiment": {"configs", "normact", "models", "datasets", "training", "backends", "analysis"},
    "grids": {"configs", "training", "experiment"},
}
PROGRAM = {"train", "evaluate", "export", "analyze", "reproduce"}
ROOMS = set(MAY_IMPORT) | PROGRAM | {"benchmarks", "emulator", "tests"}
# Like train.py, they build the network that they are asked about.
COMMANDS = {"backends/plan/__main__.py", "backends/ipu_report/runs.py"}
DEVICE_PACKAGES = {"poptorch", "popdist", "horovod"}


def imports(path: Path) -> Iterator[Tuple[str, int]]:
    """(top-level package, line) of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the package's name"
            yield (node.module or "").split(".")[0], node.lineno


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / room).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in COMMANDS
        for name, line in imports(path)
        if name in ROOMS and name not in allowed
    ]
    assert not wrong


def test_the_layer_needs_torch_alone() -> None:
    found: Set[str] = {name for path in (ROOT / "normact").rglob("*.py") for name, _ in imports(path)}
    third_party = {"numpy", "torchvision", "timm", "pydantic", "yaml", "scipy", "matplotlib", "tqdm"}
    assert "torch" in found
    assert not found & third_party


def test_only_the_ipu_backend_imports_the_packages_of_the_ipu() -> None:
    files = [path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py"))
    users = {str(path.relative_to(ROOT)) for path in files for name, _ in imports(path) if name in DEVICE_PACKAGES}
    # The probes ask PopTorch before the backend is trusted.
    assert users == {"backends/ipu/attached.py", "backends/ipu/session.py", "backends/ipu_report/probes.py"}


def test_no_requirements_file_asks_for_poptorch() -> None:
    for path in ROOT.glob("requirements*.txt"):
        lines = [line.split("#")[0] for line in path.read_text().lower().splitlines()]
        assert not any("poptorch" in line for line in lines), path


def test_the_loop_has_no_branch_on_the_device() -> None:
    tree = ast.parse((ROOT / "train.py").read_text())
    texts = [ast.unparse(node.test) for node in ast.walk(tree) if isinstance(node, (ast.If, ast.IfExp, ast.While))]
    assert not [text for text in texts if "cuda" in text or "ipu" in text or "cpu" in text or "backend.name" in text]


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions count too: a circle that is hidden so is still one."""
    packages = sorted({*MAY_IMPORT, "benchmarks"} - {"emulator"})
    paths = {path for room in packages for path in (ROOT / room).rglob("*.py")} | set(ROOT.glob("*.py"))
    modules = {module_of(path): path for path in paths}
    arrows = {name: {target for target in imported_modules(path, modules)} for name, path in modules.items()}
    assert len(arrows) > 150
    finished: Set[str] = set()

    def circle_from(name: str, way: List[str]) -> List[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in finished:
            return []
        for target in sorted(arrows[name]):
            found = circle_from(target, [*way, name])
            if found:
                return found
        finished.add(name)
        return []

    circles = [circle for circle in (circle_from(name, []) for name in sorted(arrows)) if circle]
    assert not circles


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: Dict[str, Path]) -> Iterator[str]:
    """Yield the files that a file imports from; a package's __init__ counts as itself, not as the way to its files."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules)
            yield from inner
            if len(inner) < len(node.names) and node.module in modules:
                yield node.module


# What runs, or may run, what a file or a text says; and the one place of each, which looks at the file first or is
# given nothing of a file. SECURITY.md tells why each is safe.
MAY_RUN = {
    ("torch.load", "experiment/torch_archive.py"),  # weights_only, and of an archive that was looked at
    ("load_pt2", "experiment/exported_program.py"),  # of an archive that was made here
    ("onnxruntime.InferenceSession", "experiment/onnx_file.py"),
    ("torch.ops.load_library", "normact/kernels/operators.py"),  # built here, whole, and this user's
    ("ctypes.CDLL", "normact/kernels/cpu/streaming.py"),  # the same library, already loaded
    ("ctypes.CDLL", "datasets/images/native.py"),  # the same
    ("ctypes.CDLL", "training/parents_end.py"),  # the C library, by no name
    ("ctypes.CDLL", "backends/host_memory.py"),
    ("ctypes.CDLL", "experiment/ending.py"),
    ("pickle.load", "emulator/poptorch/_executor/executable_file.py"),  # when a program asks for it
    ("pickle.load", "emulator/poptorch/_data/async_worker.py"),  # of a file that its own process just wrote
    ("exec", "emulator/poptorch/_options/config_file.py"),  # options that a program asks for
    ("compile", "emulator/poptorch/_options/config_file.py"),
}
RUNNING = {"eval", "exec", "compile", "load_pt2", "os.system", "os.popen", "np.load", "numpy.load", "ctypes.CDLL"}
RUNNING |= {"pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load"}
RUNNING |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "onnx.load", "onnxruntime.InferenceSession"}
RUNNING |= {f"torch.{name}" for name in ("load", "jit.load", "export.load", "hub.load", "ops.load_library", "package")}


def calls(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file calls."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            yield ast.unparse(node.func)
            if any(keyword.arg == "shell" for keyword in node.keywords):
                yield "os.system"  # a shell's words, as well


def test_what_may_run_a_file_stands_in_few_known_places() -> None:
    files = [path for room in ROOMS - {"tests"} for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py"))
    found = {(name, str(path.relative_to(ROOT))) for path in files for name in calls(path) if name in RUNNING}
    assert found == MAY_RUN


# What reads a file that somebody else may have put there, or a text out of one: through configs/bounded_file.py, which
# never waits for a pipe, and bounds what it takes. Others read what belongs to the system or to this repository, or
# what they have just written themselves.
MAY_READ = {
    ("open", "configs/standard_streams.py"),  # /dev/null
    ("open", "experiment/run_output.py"),
    ("open", "grids/console.py"),
    ("open", "grids/child.py"),  # to append to
    ("open", "analysis/commands/conversion.py"),
    ("open", "datasets/idx.py"),  # to write to
    ("json.loads", "configs/bounded_file.py"),
    ("json.loads", "backends/ipu_report/__main__.py"),  # of a process that it started
    ("Image.open", "datasets/images/decode.py"),  # of formats that it lists
    ("Image.open", "datasets/check.py"),
    ("read_text", "configs/load.py"),
    ("read_text", "datasets/images/native.py"),
    ("read_text", "backends/host_memory.py"),
    ("read_text", "backends/machine.py"),
    ("read_bytes", "datasets/fashion_scenes.py"),
    ("read_bytes", "datasets/photo_files.py"),
}
READING = {"open", "io.open", "gzip.open", "tarfile.open", "Image.open", "json.load", "json.loads", "yaml.safe_load"}


def test_files_of_others_are_read_by_one_reader() -> None:
    files = [path for room in set(MAY_IMPORT) - {"normact"} for path in (ROOT / room).rglob("*.py")]
    called = {(name, str(path.relative_to(ROOT))) for path in [*files, *ROOT.glob("*.py")] for name in calls(path)}
    whole = {(name.rpartition(".")[2], path) for name, path in called} & {
        (name, path) for _, path in called for name in ("read_text", "read_bytes")
    }
    assert {entry for entry in called if entry[0] in READING} | whole == MAY_READ


# One writer moves whole files into place. Beside it, those that move files too large for memory or made by others: all
# of them in a folder of a name drawn by tempfile. The layer and the emulator stand alone.
MOVERS = {"configs/atomic_file.py", "datasets/shards/remote_store.py", "datasets/pack.py"}
MOVERS |= {f"datasets/{name}.py" for name in ("fashion_mnist_files", "fashion_scenes", "photo_patches")}
MOVES = ("os.replace", "os.rename")


def test_whole_files_are_written_by_one_writer() -> None:
    files = [path for room in set(MAY_IMPORT) - {"normact"} for path in (ROOT / room).rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in files for name in calls(path) if name in MOVES} == MOVERS


@pytest.mark.parametrize("room", [*MAY_IMPORT, "emulator"])
def test_no_text_stands_as_a_statement_but_docstrings(room: str) -> None:
    """Half of a message that parentheses do not join is lost without an error."""
    lost = []
    for path in [*(ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            for part in ("body", "orelse", "finalbody"):
                statements = getattr(node, part, None)
                for place, each in enumerate(statements if isinstance(statements, list) else []):
                    value = each.value if isinstance(each, ast.Expr) else None
                    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str) and place > 0
                    if is_text or isinstance(value, ast.JoinedStr):
                        lost.append(f"{path.relative_to(ROOT)}:{each.lineno}")
    assert not lost


# A figure or a text that is written in place is half there for a while: figures go through one function, beside the SVG
# that goes into a page; texts are written so in folders of a name drawn by tempfile alone.
DRAWN = {"configs/picture_file.py", "analysis/comparison/pictures/picture.py"}
WRITTEN = {"experiment/foreign_config.py", "datasets/fashion_scenes.py"}


def test_pictures_and_texts_are_not_written_in_place() -> None:
    files = [path for room in set(MAY_IMPORT) - {"normact"} for path in (ROOT / room).rglob("*.py")]
    called = {(name.rpartition(".")[2], str(path.relative_to(ROOT))) for path in files for name in calls(path)}
    assert {path for name, path in called if name == "savefig"} == DRAWN
    assert {path for name, path in called if name in ("write_text", "write_bytes")} == WRITTEN


def test_the_fast_tests_are_some_of_each_room() -> None:
    listed = re.search(r"(?m)^FAST_TESTS := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text())
    assert listed is not None
    files = listed.group(1).replace("\\\n", " ").split()
    assert not [file for file in files if not (ROOT / file).is_file()]
    assert {file.split("/")[1] for file in files if file.count("/") == 2} == {*MAY_IMPORT, "emulator"}


def test_tests_use_no_private_names_of_the_rooms() -> None:
    rooms = "|".join(sorted(MAY_IMPORT))
    private = re.compile(rf"from (?:{rooms})[\w.]* import .*\b_[a-z]|\"(?:{rooms})(?:\.\w+)*\._[a-z]")
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if private.search(line)
    ]
    assert not lines
