"""How an experiment learns: sections `regularization`, `optimizer` and `schedule` of the configuration."""

from typing import Optional

from pydantic import Field, model_validator
from typing_extensions import Literal

from configs.section import Floats, Section


class RegularizationConfig(Section):
    """What is added to the plain loss."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread evenly over all classes")


class OptimizerConfig(Section):
    """How a gradient becomes a weight update."""

    name: Literal["sgd"]
    learning_rate: float = Field(gt=0, description="peak value, for the whole global batch")
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = Field(False)
    weight_decay: float = Field(
        0.0, ge=0, description="L2 coefficient on weights and the proxy's parameters; not on gamma, beta"
    )

    @model_validator(mode="after")
    def check(self) -> "OptimizerConfig":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov true needs momentum > 0, got momentum 0; set momentum or remove nesterov")
        return self


class ScheduleConfig(Section):
    """How long, and the learning rate at each step."""

    name: Literal["constant", "cosine", "step", "exponential"]
    epochs: int = Field(gt=0, description="passes over the training images")
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up, multiplied into the schedule")
    milestones: Optional[Floats] = Field(None, description="step: epochs of the drops")
    decay_factor: Optional[float] = Field(None, gt=0, le=1, description="step, exponential: factor of one drop")
    decay_epochs: Optional[float] = Field(None, gt=0, description="exponential: epochs between drops")

    @model_validator(mode="after")
    def check(self) -> "ScheduleConfig":
        needs = {"step": ("milestones", "decay_factor"), "exponential": ("decay_factor", "decay_epochs")}.get(
            self.name, ()
        )
        for field in needs:
            if getattr(self, field) is None:
                raise ValueError(f"schedule {self.name} needs {field}; add it")
        optional = ("milestones", "decay_factor", "decay_epochs")
        self.refuse_unused(f"schedule {self.name}", tuple(field for field in optional if field not in needs))
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is more than epochs {self.epochs}; lower it")
        if self.milestones is not None and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} do not increase; sort them")
        return self
