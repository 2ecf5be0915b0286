"""How an experiment learns: sections `regularization`, `optimizer`, `schedule` and `averaging` of the configuration."""

from typing import Dict, List, Optional, Tuple

from pydantic import Field, model_validator
from typing_extensions import Literal

from configs.schema.section import Floats, Section


class RegularizationConfig(Section):
    """What is added to the plain loss. Everything random in it is keyed on (run.seed, step, image)."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread evenly over all classes")
    drop_rate: float = Field(0.0, ge=0, lt=1, description="share of the pooled features set to zero (dropout)")
    drop_path_rate: float = Field(
        0.0, ge=0, lt=1, description="probability of leaving out the last block; linear from 0 (stochastic depth)"
    )
    mixup_alpha: Optional[float] = Field(None, gt=0, description="coefficient max(m, 1 - m), m ~ Beta(alpha, alpha)")
    cutmix_nominal: Optional[float] = Field(
        None, ge=0.62, le=1, description="CutMix, the authors' rule: no box with probability 1.55 nominal - .96"
    )
    cutmix_alpha: Optional[float] = Field(
        None, gt=0, description="CutMix, the plain rule: the share outside the box ~ Beta(alpha, alpha)"
    )
    cutmix_probability: Optional[float] = Field(
        None, gt=0, le=1, description="cutmix_alpha: share of the images with a box; default: 1"
    )

    @property
    def is_mixing(self) -> bool:
        """Whether images of a global batch are mixed with each other."""
        return (self.mixup_alpha, self.cutmix_nominal, self.cutmix_alpha) != (None, None, None)

    @model_validator(mode="after")
    def check(self) -> "RegularizationConfig":
        if self.cutmix_nominal is not None and self.cutmix_alpha is not None:
            raise ValueError(
                f"cutmix_nominal {self.cutmix_nominal} and cutmix_alpha {self.cutmix_alpha} are two rules of CutMix; "
                "give one"
            )
        if self.cutmix_alpha is None:
            self.refuse_unused("no cutmix_alpha", ("cutmix_probability",))
        return self


_OPTIMIZER_FIELDS: Dict[str, Tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov"),
    "rmsprop": ("momentum", "square_decay", "eps"),
    "adamw": ("betas", "eps"),
    "lamb": ("betas", "eps"),
}
_REQUIRED_OPTIMIZER_FIELDS: Dict[str, Tuple[str, ...]] = {
    "sgd": (),
    "rmsprop": ("momentum", "square_decay", "eps"),
    "adamw": ("betas", "eps"),
    "lamb": ("betas", "eps"),
}


def _it_or_them(names: List[str]) -> str:
    return "it" if len(names) == 1 else "them"


class OptimizerConfig(Section):
    """How a gradient becomes a weight update. The formulas are in training/optimizer.py."""

    name: Literal["sgd", "rmsprop", "adamw", "lamb"] = Field(description="rmsprop: TensorFlow's form")
    learning_rate: float = Field(gt=0, description="peak value, for the whole global batch")
    momentum: Optional[float] = Field(None, ge=0, lt=1, description="sgd (default 0) and rmsprop")
    nesterov: Optional[bool] = Field(None, description="sgd; default false")
    square_decay: Optional[float] = Field(None, gt=0, lt=1, description="rmsprop: decay of the mean square per update")
    betas: Optional[Floats] = Field(None, description="adamw, lamb: decay of the two means per update")
    eps: Optional[float] = Field(None, gt=0, description="rmsprop: inside the square root; adamw, lamb: outside it")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="not on gamma, beta, but on the proxy's parameters; L2 in sgd, rmsprop, decoupled in adamw, lamb",
    )
    clip_norm: Optional[float] = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="largest norm of the gradient over all weights, before weight decay; a longer one is scaled down "
        "to it. CPUs and GPUs; default: none",
    )

    @model_validator(mode="after")
    def check(self) -> "OptimizerConfig":
        own = _OPTIMIZER_FIELDS[self.name]
        missing = [field for field in _REQUIRED_OPTIMIZER_FIELDS[self.name] if getattr(self, field) is None]
        if missing:
            raise ValueError(f"optimizer {self.name} needs {' and '.join(missing)}; add {_it_or_them(missing)}")
        others = {field for fields in _OPTIMIZER_FIELDS.values() for field in fields} - set(own)
        self.refuse_unused(f"optimizer {self.name}", tuple(sorted(others)))
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov true needs momentum > 0, got momentum 0; set momentum or remove nesterov")
        if self.betas is not None and (len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"betas {list(self.betas)} must be two numbers in [0, 1), such as [0.9, 0.999]")
        return self


class ScheduleConfig(Section):
    """How long, and the learning rate at each step."""

    name: Literal["constant", "cosine", "step", "exponential"] = Field(description="how the learning rate changes")
    epochs: int = Field(gt=0, description="passes over the training images")
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up, multiplied into the schedule")
    milestones: Optional[Floats] = Field(None, description="step: epochs of the drops")
    decay_factor: Optional[float] = Field(None, gt=0, le=1, description="step, exponential: factor of one drop")
    decay_epochs: Optional[float] = Field(None, gt=0, description="exponential: epochs between drops")
    first_drop: Optional[Literal["after_decay_epochs", "at_start"]] = Field(
        None, description="exponential: when the first drop happens; default: after_decay_epochs"
    )

    @model_validator(mode="after")
    def check(self) -> "ScheduleConfig":
        needs = {"step": ("milestones", "decay_factor"), "exponential": ("decay_factor", "decay_epochs")}.get(
            self.name, ()
        )
        missing = [field for field in needs if getattr(self, field) is None]
        if missing:
            raise ValueError(f"schedule {self.name} needs {' and '.join(missing)}; add {_it_or_them(missing)}")
        uses = (*needs, "first_drop") if self.name == "exponential" else needs
        optional = ("milestones", "decay_factor", "decay_epochs", "first_drop")
        self.refuse_unused(f"schedule {self.name}", tuple(field for field in optional if field not in uses))
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is more than epochs {self.epochs}; lower it")
        if self.milestones is not None and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} do not increase; sort them")
        return self


class AveragingConfig(Section):
    """Whether an average of the weights over time is evaluated, instead of the last weights."""

    every: Literal["never", "epoch", "step"] = Field("never", description="when the average is updated")
    decay: Optional[float] = Field(None, gt=0, lt=1, description="decay of the average per update")

    @model_validator(mode="after")
    def check(self) -> "AveragingConfig":
        if self.every == "never":
            self.refuse_unused("averaging every never", ("decay",))
        elif self.decay is None:
            raise ValueError(f"averaging every {self.every} needs decay; add it, e.g. decay: 0.97")
        return self
