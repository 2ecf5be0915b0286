"""What a checkpoint holds: every entry, its type, and what must agree. The same for what is written and what is read.

A file of tensors may have the right keys and be no checkpoint: made by another program, changed by hand, or damaged.
Used as it is, it would end in a traceback far from here, or silently train on from something else.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from torch import Tensor
from typing_extensions import Annotated, Literal

from experiment.manifest import FORMAT
from training.metrics import StepSums
from training.weights import CheckpointError, first_of, shown

_SUMS = len(StepSums().stacked())
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_COUNTERS = ("step", "updates")  # of weight updates, in the state of optimizers: AdamW's and Lamb's


def _check_plain(tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.dtype not in (*_REAL, *_WHOLE) or tensor.is_meta:
        raise ValueError("a dense tensor of real numbers")
    return tensor


def _check_sums(tensor: Tensor) -> Tensor:
    wanted = f"sums over images, {_SUMS} numbers of float64"
    if tensor.dtype != torch.float64 or tensor.shape not in ((_SUMS - 1,), (_SUMS,)):  # without gradients once
        raise ValueError(wanted)
    if not all(math.isfinite(count) and count >= 0 and count == int(count) for count in tensor[1:4].tolist()):
        raise ValueError(f"{wanted}, three of them counts")
    return tensor


def _check_number(value: Any) -> Any:
    if type(value) not in (int, float):  # pydantic takes whatever can be converted, tensors too
        raise ValueError("a number")
    return value


def _check_config(config: Dict[str, Dict[str, Any]]) -> Dict[str, Dict[str, Any]]:
    for section, values in config.items():
        for key, value in values.items():
            if not _is_plain(value):
                raise ValueError(f"plain values: {section}.{key} is {shown(value)}")
    return config


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    return value is None or type(value) in (bool, int, float, str)


PlainTensor = Annotated[Tensor, AfterValidator(_check_plain)]
Number = Annotated[float, BeforeValidator(_check_number)]
Sums = Annotated[Tensor, AfterValidator(_check_sums)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
ThreeMeans = Annotated[List[Number], Field(min_length=3, max_length=3)]
Weights = Annotated[Dict[str, PlainTensor], Field(min_length=1)]
Plain = Union[bool, Number, str, None]
Setting = Union[Plain, List[Plain], Tuple[Plain, ...]]


class _Entries(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())


class _Named(_Entries):
    """Means by name, as summaries have them."""

    loss: Number
    top1: Number
    top5: Number


class _Best(_Entries):
    step: Count
    epoch: Count
    validation: _Named
    evaluation: Optional[_Named]


class _Extension(_Entries):
    epochs: Count
    step: Count


class _Progress(_Entries):
    """Of experiment.progress.Progress."""

    step: Count
    evaluated_step: Count
    interval: Sums
    interval_seconds: Seconds
    epoch: Sums
    evaluation: ThreeMeans
    best_top1: Number
    validation: Optional[ThreeMeans] = None  # what has a default is not in checkpoints of earlier versions
    best: Optional[_Best] = None
    seconds: Seconds
    training_seconds: Seconds
    untimed_steps: Count = 0
    interval_untimed_steps: Count = 0
    extended: List[_Extension] = []
    is_saved: bool


class _Optimizer(_Entries):
    """torch's form; training.optimizer compares it with the optimizer that is to go on."""

    state: Dict[int, Dict[str, Union[PlainTensor, Number, None]]]
    param_groups: Annotated[List[Dict[str, Setting]], Field(min_length=1)]


class _Average(_Entries):
    updates: Count
    weights: Dict[str, PlainTensor]  # empty before the first update


class _Checkpoint(_Entries):
    """Of experiment.continuation.save.

    norm: see check_norm; class_names: by label; execution: see experiment.resume.
    """

    format: Literal[3]
    model: Weights
    optimizer: _Optimizer
    average: Optional[_Average]
    step: Count
    progress: _Progress
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    config: Annotated[Dict[str, Dict[str, Any]], AfterValidator(_check_config)]
    norm: Dict[str, Plain]
    execution: Dict[str, Plain]
    class_names: Annotated[List[str], Field(min_length=1)]
    data_fingerprint: str


KEYS = frozenset(_Checkpoint.model_fields)
_WANTED = {
    "is_instance_of": "a tensor",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "a text",
    "dict_type": "a dictionary",
    "list_type": "a list",
    "model_type": "a dictionary",
    "greater_than_equal": "0 or more",
    "less_than": "a smaller number",
    "finite_number": "a finite number",
    "literal_error": f"{FORMAT}",
}


def check_state(state: Mapping[str, Any], where: str) -> None:
    """Refuse a dictionary that is not what a checkpoint holds, or that contradicts itself.

    Args:
        state: with the key "format".
        where: begins the message, e.g. the path of a file.

    Raises:
        CheckpointError: as said.
    """
    if set(state) != KEYS:
        missing, unknown = sorted(KEYS - set(state)), sorted(map(str, set(state) - KEYS))
        raise CheckpointError(f"{where} lacks the keys {missing} and has the unknown keys {unknown}")
    try:
        _Checkpoint.model_validate(dict(state))
        problems = list(_contradictions(state))
    except ValidationError as error:
        problems = _explained(error)
    if problems:
        raise CheckpointError(f"{where} is not a checkpoint of this program, or is damaged: {first_of(problems)}")


def _contradictions(state: Mapping[str, Any]) -> Iterator[str]:
    step, progress, average = state["step"], state["progress"], state["average"]
    if progress["step"] != step:
        yield f"step is {step}, and progress.step {progress['step']}; they must be equal"
    if progress["evaluated_step"] > step:
        yield f"progress.evaluated_step is {progress['evaluated_step']}, which is after step {step}"
    for index, kept in state["optimizer"]["state"].items():
        for name in _COUNTERS:
            if name in kept and (kept[name] is None or _number(kept[name]) != step):
                yield f"optimizer.state.{index}.{name} is {shown(kept[name])}, and step {step}; they must be equal"
    if _get(state["config"], "run", "seed") != state["seed"]:
        yield f"seed is {state['seed']}, and config.run.seed {shown(_get(state['config'], 'run', 'seed'))}"
    decay = _get(state["config"], "averaging", "decay")
    if (average is None) != (decay is None):
        yield (
            f"average is {shown(average)}, and config.averaging.decay {shown(decay)}; both must be present, or neither"
        )
    if average is not None and (average["updates"] or average["weights"]):
        yield from _different_weights(state["model"], average["weights"])
    classifier = state["model"].get("classifier.weight")
    if classifier is not None and classifier.shape[:1] != (len(state["class_names"]),):
        yield f"class_names has {len(state['class_names'])} names, and model.classifier.weight is {shown(classifier)}"


def _different_weights(model: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted({*model, *average}):
        own, averaged = model.get(name), average.get(name)
        if own is None or averaged is None or (own.shape, own.dtype) != (averaged.shape, averaged.dtype):
            yield f"average.weights.{name} is {shown(averaged)}, and model.{name} {shown(own)}"


def _get(config: Mapping[str, Mapping[str, Any]], section: str, key: str) -> Any:
    return config.get(section, {}).get(key)


def _number(value: Union[Tensor, float]) -> float:
    return float(value) if not isinstance(value, Tensor) or value.numel() == 1 else math.nan


def _explained(error: ValidationError) -> List[str]:
    """Return one text for each entry: which, what was found and what is wanted."""
    told: Dict[str, str] = {}
    for problem in error.errors(include_url=False):
        # Of a union, each member's own complaint follows under a name that is none of the file's.
        path = [str(part) for part in problem["loc"]]
        if path[:1] == ["optimizer"]:
            path = path[:4]
        elif path[:1] in (["norm"], ["execution"]):
            path = path[:2]
        key = ".".join(path)
        if problem["type"] == "missing":
            told.setdefault(key, f"{key} is missing")
        elif problem["type"] == "extra_forbidden":
            told.setdefault(key, f"{key} is unknown")
        else:
            told.setdefault(key, f"{key} is {shown(problem['input'])}, expected {_wanted(problem)}")
    return list(told.values())


def _wanted(problem: Any) -> str:
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] in ("too_short", "too_long"):
        least, most = problem["ctx"].get("min_length"), problem["ctx"].get("max_length")
        return f"at least {least}" if most is None else f"{most} numbers"
    return _WANTED.get(problem["type"], problem["msg"])
