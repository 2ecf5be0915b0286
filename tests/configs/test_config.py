"""Configuration: every shipped YAML loads; every mistake is one line that names file, line, key, got, expected."""

import contextlib
import os
import re
import shutil
from pathlib import Path
from random import Random
from typing import Any, List

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs import Config, ConfigError, config_names, dump_config, find_config, load_config
from configs.yaml_file import parse_value, read_yaml

BASE = find_config("generated_smoke")


def write(folder: Path, text: str) -> str:
    path = folder / "experiment.yaml"
    path.write_text(text)
    return str(path)


def edited(folder: Path, old: str, new: str) -> str:
    text = BASE.read_text()
    assert old in text
    return write(folder, text.replace(old, new, 1))


def message_of(config: str, overrides: List[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(config, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_config_loads_and_its_dump_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert load_config(write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("key", ["run.output_dir", "data.dir", "model.pretrained", "ipu.profile_dir"])
def test_an_empty_name_is_refused_and_not_taken_for_none(key: str) -> None:
    assert f"{key}: an empty text is no name of a file or folder" in message_of("generated_smoke", [f"{key}=''"])
    with pytest.raises(ConfigError, match=r"--output-dir : run\.output_dir: an empty text"):
        load_config("generated_smoke", [], [("--output-dir", "run.output_dir", "")])


def test_what_is_no_file_is_told_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name, part in (
        ("folder.yaml", "cannot be read: Is a directory"),
        ("pipe.yaml", "cannot be read: it is not a regular file"),
        ("loop.yaml", "Too many levels of symbolic links"),
        ("none.yaml", "no such file"),
        ("n" * 300 + ".yaml", "File name too long"),
        ("folder.yaml/../folder.yaml/x.yaml", "no such file"),
    ):
        assert part in message_of(str(tmp_path / name), []), name
    assert "it is not a regular file" in message_of("/dev/zero", [])
    shutil.copy(BASE, tmp_path / "a name\nof two lines.yaml")
    assert load_config(str(tmp_path / ".." / tmp_path.name / "a name\nof two lines.yaml")) == load_config(str(BASE))


@pytest.mark.parametrize("key", ["run.output_dir", "data.dir", "data.cache_dir", "model.pretrained"])
@pytest.mark.parametrize("text", ['"\\0"', '"a\\0b"', '"\\ud800"'])
def test_a_path_that_no_system_takes_is_refused(key: str, text: str) -> None:
    message = message_of("generated_smoke", [f"{key}={text}"])
    assert message.startswith(f"--set {key}={text}: ") and "can be no name of a file" in message


VALUES = [
    "nan",
    ".nan",
    ".inf",
    "-1",
    "0",
    "1",
    "2",
    "0.5",
    "1e99",
    "1e-320",
    "0x10",
    "010",
    "1_000",
    "12:30:00",
    "true",
]
VALUES += [
    "false",
    "null",
    "~",
    "",
    "''",
    '"\\0"',
    '"\\ud800"',
    "[]",
    "{}",
    "[1, 2]",
    "[[]]",
    "{a: 1}",
    "[null]",
    "9" * 20,
]
VALUES += [
    "9" * 5000,
    str(2**63),
    "a" * 5000,
    "é",
    "/",
    "~/x",
    "{0}",
    "!!python/name:os.system",
    "&a 1",
    "*a",
    "2001-01-01",
]
VALUES += [
    "on",
    "relu",
    "group",
    "group+ws",
    "adamw",
    "sgd",
    "cosine",
    "generated",
    "image_shards",
    "cifar10",
    "cpu",
    "ipu",
]
VALUES += [
    "leaky_relu(nan)",
    "leaky_relu()",
    "[1,2",
    "{",
    "'",
    "a: b: c",
    "- 1",
    "\t1",
    "1\n2",
    "\0",
    "\x85",
    "\ud800",
    "|\n x",
]
VALUES += ["@a", "%YAML 2.0", "--- 1\n--- 2", "[0.9, 0.999]", "[nan, 0]", "[stages.0]", "s3://u:p@h/x", "http://[::1"]


VALUES += [
    "1e400",
    "-0.0",
    "0x" + "f" * 17,
    "+5",
    "1.",
    "TRUE",
    "\u202e1",
    "\uff11",
    "[1e99]",
    "!!int 1",
    "? a",
    "a #b",
]
VALUES += [
    '"\\U0010ffff"',
    "[,]",
    "[a: 1]",
    "[0.9, 0.99, 1]",
    "[true, false]",
    "relu(",
    "leaky_relu(1e400)",
    "/dev/zero",
]


def setting(config: Config, key: str) -> Any:
    section, _, field = key.partition(".")
    return getattr(getattr(config, section), field)


def meant(text: str) -> Any:
    """Return the value that a setting has which was given as a text: that one and no other."""
    value = parse_value(text)
    return tuple(value) if isinstance(value, list) else os.path.expanduser(value) if isinstance(value, str) else value


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(100, 1000, 100))]
)
def test_a_hundred_drawn_overrides_are_a_configuration_or_an_error_that_names_them(first: int, tmp_path: Path) -> None:
    keys = [f"{section}.{key}" for section, part in load_config("generated_smoke") for key in type(part).model_fields]
    for seed in range(first, first + 100):
        random = Random(seed)
        drawn = [f"{random.choice(keys)}={random.choice(VALUES)}" for _ in range(random.choice((1, 1, 3)))]
        try:
            config = load_config(random.choice(config_names()), drawn)
            (tmp_path / "config.yaml").write_text(dump_config(config))
            given = dict(each.split("=", 1) for each in drawn)
            assert {key: setting(config, key) for key in given} == {key: meant(text) for key, text in given.items()}
            if "***" not in dump_config(config):  # of a password, which is not written
                assert load_config(str(tmp_path / "config.yaml")) == config
        except ConfigError as error:
            assert len(str(error)) < 3000 and " object at 0x" not in str(error), drawn


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_config_opens_with_its_contract(name: str) -> None:
    head = find_config(name).read_text().split("\n\n")[0]
    assert head.startswith("# ")
    if "\nbase: " not in head:  # complete: the files on top of it say only what differs
        assert all(line.startswith("#") for line in head.splitlines())
        for word in ("command", "machine", f"--config {name}"):
            assert word in head


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E3", 5000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2.5e+3", -2500.0),
        ("8", 8),
        ("0x10", 16),
        ("0", 0),
        ("-7", -7),
        ("010", "010"),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("9" * 20, int("9" * 20)),
        ("9" * 5000, "9" * 5000),
        ("true", True),
        ("no", "no"),
        ("off", "off"),
        ("null", None),
        ("[30, 60.5]", [30, 60.5]),
        ("1e", "1e"),
        ("'8'", "8"),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.floats(allow_nan=False))
def test_every_float_that_is_written_reads_back_equal(value: float) -> None:
    assert parse_value(yaml.safe_dump(value).splitlines()[0]) == value


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("  global_batch_size: 64", "  global_batch_sise: 64", 22, ["unknown key", "did you mean global_batch_size?"]),
        ("  epochs: 4", "  epochs: four", 33, ["schedule.epochs", "'four'", "an integer"]),
        ("  epochs: 4", "  epochs: 4.5", 33, ["schedule.epochs", "4.5", "an integer"]),
        ("  epochs: 4", "  epochs: 0", 33, ["schedule.epochs", "0", "greater than 0"]),
        ("  proxy: true", "  proxy: no", 12, ["norm.proxy", "'no'", "true or false"]),
        ("  learning_rate: 0.1", "  learning_rate: 'a'", 28, ["optimizer.learning_rate", "'a'", "a number"]),
        ("  name: generated", "  name: imagenet", 15, ["data.name", "'imagenet'", "fashion_mnist"]),
        ("  epochs: 4", "  epochs: 4\n  epochs: 5", 34, ["duplicate key schedule.epochs", "line 33"]),
        ("  momentum: 0.9", "  momentum: &m 0.9", 29, ["anchors"]),
        ("  momentum: 0.9", "  momentum: !!float 0.9", 29, ["tags"]),
        ("  momentum: 0.9", "\tmomentum: 0.9", 29, ["not valid YAML"]),
        ("  warmup_epochs: 0.5", "  warmup_epochs: 5", 31, ["warmup_epochs 5", "epochs 4"]),
        ("  name: cosine", "  name: step", 31, ["needs milestones and decay_factor; add them"]),
        ("  warmup_epochs: 0.5", "  decay_epochs: 2.0", 31, ["decay_epochs", "no effect with schedule cosine"]),
        ("  momentum: 0.9", "  nesterov: true", 26, ["nesterov", "momentum 0"]),
    ],
)
def test_a_mistake_in_a_file_is_named_with_file_and_line(
    tmp_path: Path, old: str, new: str, line: int, parts: List[str]
) -> None:
    message = message_of(edited(tmp_path, old, new), [])
    assert message.startswith(f"{tmp_path}/experiment.yaml:{line}:"), message
    for part in parts:
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("batch.global_batch_size=6.5", ["--set batch.global_batch_size=6.5", "an integer"]),
        ("batch.globl=8", ["unknown key", "known keys"]),
        ("epochs=3", ["section.key=value"]),
        ("schedule.epochs", ["section.key=value"]),
        ("schedule.warmup_epochs=9", ["--set schedule.warmup_epochs=9", "warmup_epochs 9", "epochs 4"]),
        ("shedule.epochs=3", ["unknown key", "did you mean schedule?"]),
        ("schedule.epochs=[", ["--set schedule.epochs=[", "not valid YAML"]),
    ],
)
def test_a_mistake_on_the_command_line_is_named_with_the_override(override: str, parts: List[str]) -> None:
    message = message_of("generated_smoke", [override])
    for part in parts:
        assert part in message


def test_overrides_apply_in_order_and_only_to_their_key() -> None:
    plain = load_config("generated_smoke").model_dump()
    config = load_config("generated_smoke", ["schedule.epochs=7", "schedule.epochs=9", "device.name=cpu"]).model_dump()
    assert config["schedule"].pop("epochs") == 9
    assert config["device"].pop("name") == "cpu"
    plain["schedule"].pop("epochs")
    plain["device"].pop("name")
    assert config == plain


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty file"),
        (b"- a\n- b\n", "got a list at the top"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"# " + b"x" * 1_000_001, "over the limit of"),
        (b"a: &a [1]\nb: [*a, *a]\n", "anchors"),
        (b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"? [a]\n: 1\n", "a key must be a word"),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    message = message_of(str(path), [])
    assert part in message
    assert str(path) in message
    assert "\n" not in message


def test_a_missing_section_and_a_missing_key_are_both_named(tmp_path: Path) -> None:
    values, _ = read_yaml(BASE)
    del values["optimizer"]
    del values["model"]["name"]
    lines = message_of(write(tmp_path, yaml.safe_dump(values)), []).splitlines()
    assert any("optimizer: missing" in line for line in lines)
    assert any("model.name: missing" in line for line in lines)


def test_an_unknown_experiment_names_the_nearest_few_and_where_the_others_are() -> None:
    message = message_of("fashion_rn20_gnnp", [])
    assert "the nearest are fashion_rn20_gn8pn, " in message and "/configs/*/`" in message
    assert len(message) < 400  # not all of more than a hundred
    assert "nearest" not in message_of("xyzzy", [])
    assert "no such file" in message_of("nowhere/there.yaml", [])


def test_a_config_cannot_be_changed_after_loading() -> None:
    config = load_config("generated_smoke")
    with pytest.raises(ValueError, match="frozen"):
        config.schedule.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("text", ["010", "12:30:00", "1_000", "9" * 5000])
def test_what_looks_like_a_number_and_is_none_is_an_error_in_a_file_and_behind_set(text: str, tmp_path: Path) -> None:
    shown = repr(text) if len(text) < 80 else "'999"
    for message in (
        message_of("generated_smoke", [f"schedule.epochs={text}"]),
        message_of(write(tmp_path, BASE.read_text().replace("epochs: 4", f"epochs: {text}")), []),
    ):
        assert f"schedule.epochs: got {shown}" in message and "expected an integer" in message
        assert len(message) < 400


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("!!binary aGk=", "tags"),
        ("&a 1", "anchors"),
        ("[*a]", "aliases"),
        ("{a: 1, a: 2}", "duplicate key a"),
        ("a\x07", "U+0007 is not printable"),
        ("\udc80", "U+DC80 is not printable"),
        ("[1", "not valid YAML"),
    ],
)
def test_what_a_file_may_not_have_is_refused_behind_set_too(value: str, words: str) -> None:
    message = message_of("generated_smoke", [f"run.seed={value}"])
    assert message.startswith("--set run.seed=") and words in message and "\n" not in message


def test_a_file_with_a_control_character_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, BASE.read_text().replace("epochs: 4", "epochs: \x014"))
    assert re.search(r":33: the character U\+0001 is not printable", message_of(path, []))


def test_damaged_files_and_values_end_in_one_message_and_never_in_a_traceback(tmp_path: Path) -> None:
    random = Random(0)
    parts = [
        "\0",
        "9" * 5000,
        "!!binary aGk=",
        "&a 1",
        "*a",
        "{",
        "[",
        "? ",
        "|",
        "\t",
        "'",
        "%YAML 1.1\n",
        "---\n",
        "\x85",
        "~",
    ]
    for number in range(150):
        text = list(BASE.read_text())
        for _ in range(random.randint(1, 4)):
            place = random.randrange(len(text))
            choice = random.random()
            if choice < 0.5:
                text.insert(place, random.choice(parts))
            elif choice < 0.8:
                del text[place : place + random.randint(1, 20)]
            else:
                text[place] = chr(random.randrange(300))
        (tmp_path / f"{number}.yaml").write_text("".join(text), encoding="utf-8")
        with contextlib.suppress(ConfigError):
            load_config(str(tmp_path / f"{number}.yaml"))


def test_a_home_folder_is_written_as_shells_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = load_config("rn50_bn", ["data.dir=~/imagenet"])
    assert config.data.dir == "/home/somebody/imagenet"
    config = load_config("rn50_bn", ["model.pretrained=~/w.pth"], [("--output-dir", "run.output_dir", "~/runs")])
    assert (config.model.pretrained, config.run.output_dir) == ("/home/somebody/w.pth", "/home/somebody/runs")
    assert load_config("rn50_bn", ["data.name=image_shards", "data.dir=s3://~/x"]).data.dir == "s3://~/x"


def test_the_name_of_a_network_leads_to_its_experiments() -> None:
    assert "the nearest are rn50_*" in message_of("resnet50", [])
