"""What of a configuration says what the experiment means; the rest says how it is executed and may differ."""

from typing import Any, Dict, List, Mapping

_EXECUTED = {
    # max_corrupt and max_megapixels only decide whether to go on: what replaces an image does not depend on it
    "data": {"workers", "dir", "cache_dir", "max_corrupt", "max_megapixels"},
    "batch": {"micro_batch_size"},
    "norm": {"kernel", "recompute"},
}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> List[str]:
    """`section.key was ..., is now ...` of each value that makes `now` another experiment than `before`.

    Not compared are the sections `device`, `ipu` and `run` but for the seed, micro_batch_size, workers, the folder of
    the data and of its copies, max_corrupt, max_megapixels, kernel and recompute.

    Args:
        before: a configuration as a dictionary of its sections.
        now: the other.
    """
    meant_before = _meaning(before)
    return [
        f"{section}.{key} was {meant_before.get(section, {}).get(key)!r}, is now {value!r}"
        for section, values in _meaning(now).items()
        for key, value in values.items()
        if meant_before.get(section, {}).get(key) != value
    ]


def _meaning(config: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
    meaning = {
        section: {key: value for key, value in values.items() if key not in _EXECUTED.get(section, ())}
        for section, values in config.items()
        if section not in ("device", "ipu", "run")
    }
    meaning["run"] = {"seed": config["run"]["seed"]}
    return meaning
