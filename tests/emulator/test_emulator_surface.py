"""Names, parameters, defaults and values of PopTorch 3.4, compared with the list of facts in poptorch_api.json."""

import enum
import importlib
import inspect
import json
from pathlib import Path

import poptorch
import pytest

API = json.loads((Path(__file__).parent / "poptorch_api.json").read_text())
# What the emulator leaves out, with the reason.
LEFT_OUT = {
    ("poptorch._IExecutionStrategy", "onStartTracing"): "called by the compiler only",
    ("poptorch._IExecutionStrategy", "onEndTracing"): "called by the compiler only",
    ("poptorch._IExecutionStrategy", "__init__"): "called by the strategies only",
}


def resolve(path):
    """Return the object of a dotted path; option classes live in poptorch.options, as there."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        for other in ("sub_options", "tensor_locations", "strategies"):
            found = getattr(importlib.import_module(f"poptorch._options.{other}"), name, None)
            if found is not None:
                return found
        raise


def shown(default):
    """Return a default as the facts write it, without spaces, module names and the kind of quotation mark."""
    if isinstance(default, enum.Enum):
        return f"{type(default).__name__}.{default.name}"
    return plain(repr(default))


def plain(text):
    return text.replace(" ", "").replace("enums.", "").replace("poptorch.", "").replace('"', "'")


def parameters_of(function):
    return [
        [p.name, p.kind.name, None if p.default is inspect.Parameter.empty else shown(p.default)]
        for p in inspect.signature(function).parameters.values()
    ]


def same(ours, facts):
    """Names, kinds and defaults agree; how a method calls its instance does not matter."""
    facts = [[name, kind, None if default is None else plain(default)] for name, kind, default in facts]
    return [p for p in ours if p[0] not in ("self", "cls")] == [p for p in facts if p[0] not in ("self", "cls")]


@pytest.mark.parametrize("path", sorted(API["functions"]))
def test_functions_have_the_parameters_and_defaults_of_poptorch(path):
    assert same(parameters_of(resolve(path)), API["functions"][path])


METHODS = [
    (path, method)
    for path, facts in sorted(API["classes"].items())
    for method in facts["methods"]
    if (path, method) not in LEFT_OUT
]


@pytest.mark.parametrize("path, method", METHODS)
def test_methods_have_the_parameters_and_defaults_of_poptorch(path, method):
    ours = parameters_of(getattr(resolve(path), method))
    assert same(ours, API["classes"][path]["methods"][method])


@pytest.mark.parametrize("path", sorted(API["classes"]))
def test_classes_have_the_properties_of_poptorch(path):
    for name in API["classes"][path]["properties"]:
        assert isinstance(inspect.getattr_static(resolve(path), name), property)


@pytest.mark.parametrize("path", sorted(API["enums"]))
def test_enums_have_the_members_and_values_of_poptorch(path):
    members = {member.name: member.value for member in resolve(path)}
    assert members == API["enums"][path]


@pytest.mark.parametrize("file", sorted(API["star_exports"]))
def test_every_name_a_star_import_gives_is_there(file):
    missing = [name for name in API["star_exports"][file] if not hasattr(poptorch, name)]
    assert missing == []


@pytest.mark.parametrize("name", API["absent"])
def test_names_of_other_versions_are_absent(name):
    assert not hasattr(poptorch, name)
    assert not hasattr(poptorch.Options, name)


def test_options_start_with_poptorchs_defaults():
    facts = API["stored_defaults"]["poptorch.Options"]
    options = poptorch.Options()
    for name, default in facts.items():
        assert getattr(options, name) == eval(default, {"enums": poptorch.enums}), name


def test_option_groups_are_reached_by_their_names():
    for path, class_name in API["options_sub_objects"].items():
        assert type(getattr(poptorch.Options(), path.split(".")[1])).__name__ == class_name


def test_the_version_is_the_emulated_one():
    assert poptorch.__version__ == API["version"]
