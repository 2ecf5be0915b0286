"""What a run is: the frozen, checked form of one experiment's YAML file.

Every field has its unit and meaning beside it. Unknown keys are errors, types are strict (the string "8" is not the
number 8), and nothing is changed after loading. Fields that only some choices use are Optional: giving one where it has
no effect is an error, never ignored.
"""

from typing import Any, Optional, Tuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import Annotated, Literal


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Floats = Annotated[Tuple[float, ...], BeforeValidator(_list_to_tuple)]  # YAML has lists; a frozen config needs tuples

DeviceName = Literal["auto", "cpu", "cuda", "ipu", "ipu_model", "ipu_emulator"]


class Section(BaseModel):
    """One section of the YAML file: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def refuse_unused(self, choice: str, unused: Tuple[str, ...]) -> None:
        """Raise for fields that were given a value although `choice` has no use for them."""
        for name in unused:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} = {getattr(self, name)!r} has no effect with {choice}; remove it")


class ModelConfig(Section):
    """Which network."""

    name: str = Field(description="a network of models/, e.g. resnet20 or resnet50")
    width: Optional[int] = Field(None, gt=0, description="channels of the first stage; default: the network's own")


class NormConfig(Section):
    """What normalizes the activations. A field left out takes the layer's default (proxynorm.NormActFactory)."""

    name: str = Field(description="batch, layer, group, instance, frn, evonorm_s0, none; +ws: weight standardization")
    proxy: bool = Field(description="true: Proxy Normalization after each activation")
    num_groups: Optional[int] = Field(None, gt=0, description="groups of group norm")
    grouping: Optional[Literal["contiguous", "strided"]] = Field(None, description="how group norm groups channels")
    eps: Optional[float] = Field(None, ge=0, description="added to the norm's variance; default 1e-5, frn 1e-6")
    proxy_eps: Optional[float] = Field(None, ge=0, description="added to the proxy's variance; the paper's code: 0.03")
    proxy_method: Optional[Literal["exact", "sampled"]] = Field(None, description="how proxy statistics are computed")
    learn_proxy: Optional[bool] = Field(None, description="false: the proxy's own mean and scale stay at zero")
    kernel: Literal["auto", "fused", "reference"] = Field(
        "auto", description="fused kernels, or plain torch operations"
    )
    recompute: bool = Field(False, description="rebuild normalized activations in backward instead of saving them")


class DataConfig(Section):
    """Which images, and how they are augmented."""

    name: Literal["fashion_mnist", "cifar10", "cifar100", "image_folder", "generated"]
    dir: Optional[str] = Field(None, description="folder of the data; default: $DATA_DIR, else data/")
    image_size: Optional[int] = Field(None, gt=0, description="pixels per side; default: the data set's own")
    crop_padding: Optional[int] = Field(None, gt=0, description="pixels of zero padding before a random crop")
    min_crop_area: Optional[float] = Field(
        None, gt=0, le=1, description="random crops cover this share of the image or more"
    )
    horizontal_flip: bool = Field(False, description="mirror half of the training images")
    workers: int = Field(0, ge=0, description="processes that load images, per training process")
    num_classes: Optional[int] = Field(None, gt=1, description="generated images only: classes")
    num_train_images: Optional[int] = Field(None, gt=0, description="generated images only: images to train on")
    num_eval_images: Optional[int] = Field(None, gt=0, description="generated images only: images to evaluate on")

    @model_validator(mode="after")
    def check(self) -> "DataConfig":
        if self.crop_padding is not None and self.min_crop_area is not None:
            raise ValueError(
                f"crop_padding {self.crop_padding} and min_crop_area {self.min_crop_area} both crop; give one"
            )
        return self


class BatchConfig(Section):
    """The two batch sizes that an experiment means, and the one that a machine may choose. See configs/batch.py."""

    global_batch_size: int = Field(gt=0, description="images per weight update, over all replicas")
    norm_batch_size: int = Field(gt=0, description="images that share normalization statistics; 1 unless norm is batch")
    micro_batch_size: Optional[int] = Field(
        None, gt=0, description="images in one forward; default: the largest that fits"
    )


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


class DeviceConfig(Section):
    """Where it runs and in which precision. Results do not depend on this section beyond rounding."""

    name: DeviceName = Field("auto", description="auto: the best device found")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast; weights stay float32")
    channels_last: bool = Field(False, description="memory layout NHWC")
    compile: bool = Field(False, description="torch.compile of the network")
    threads: Optional[int] = Field(None, gt=0, description="CPU threads per process; default: torch's own choice")


class RunConfig(Section):
    """What a run writes, and its seed."""

    seed: int = Field(ge=0, lt=2**63, description="keys weights' start values, image order and augmentation")
    output_dir: Optional[str] = Field(None, description="run folder; default: runs/<name of the config>")
    log_every_steps: int = Field(100, gt=0, description="steps between training records in metrics.jsonl")
    eval_every_epochs: int = Field(1, gt=0)
    checkpoint_every_steps: Optional[int] = Field(None, gt=0, description="besides the one after each epoch")
    keep_checkpoints: int = Field(
        2, ge=2, description="newest checkpoints kept; one more than the newest, should that be damaged"
    )
    wandb: Literal["off", "online", "offline"] = Field("off")
    wandb_project: str = Field("proxynorm")


class Config(Section):
    """One experiment."""

    model: ModelConfig
    norm: NormConfig
    data: DataConfig
    batch: BatchConfig
    regularization: RegularizationConfig = RegularizationConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    device: DeviceConfig = DeviceConfig()
    run: RunConfig
