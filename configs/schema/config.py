"""What a run is: the frozen, checked form of one experiment's YAML file.

Every field has its unit and meaning beside it. Unknown keys are errors, types are strict (the string "8" is not the
number 8), and nothing is changed after loading. Fields that only some choices use are Optional: giving one where it has
no effect is an error, never ignored. The sections on learning and on the device have files of their own.
"""

from typing import Optional, Tuple

from pydantic import BeforeValidator, Field, field_serializer, model_validator
from typing_extensions import Annotated, Literal

from configs.passwords import HIDDEN, has_hidden, hide_passwords
from configs.schema.device import DeviceConfig, IpuConfig
from configs.schema.learning import AveragingConfig, OptimizerConfig, RegularizationConfig, ScheduleConfig
from configs.schema.section import PathText, Section, Words, list_to_tuple

SignalNames = Annotated[Tuple[Literal["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"], ...], BeforeValidator(list_to_tuple)]


class ModelConfig(Section):
    """Which network."""

    name: str = Field(description="a network of models/, e.g. resnet20 or resnet50")
    width: Optional[int] = Field(None, gt=0, description="channels of the first stage; default: the network's own")
    activation: Optional[str] = Field(
        None, description="relu, silu, gelu, leaky_relu(0.2), ...; default: the network's own, relu or silu"
    )
    pretrained: Optional[PathText] = Field(None, description="file of weights to start from, instead of random ones")
    reset_classifier: bool = Field(
        False, description="initialize the classifier at random instead of taking it from pretrained"
    )
    calibration_images: Optional[int] = Field(
        None,
        gt=0,
        description="pretrained has batch norm and this network another norm: training images whose moments decide the "
        "norms' parameters, so that the function stays; default: none, pretrained has this network's norm",
    )
    train_only: Optional[Words] = Field(None, description="modules to train, e.g. [top, classifier]; default: all")

    @model_validator(mode="after")
    def check(self) -> "ModelConfig":
        if self.reset_classifier and self.pretrained is None:
            raise ValueError("reset_classifier true has no effect without pretrained; remove it")
        if self.calibration_images is not None and self.pretrained is None:
            raise ValueError(
                f"calibration_images {self.calibration_images} has no effect without pretrained; remove it"
            )
        if self.train_only == ():
            raise ValueError("train_only [] leaves nothing to train; name modules, or remove it")
        return self


class NormConfig(Section):
    """What normalizes the activations. A field left out takes the layer's default (normact.NormActFactory)."""

    name: str = Field(
        description="batch, layer, group, instance (each also with +ws), frn, evonorm_s0, dyt, derf, none"
    )
    proxy: bool = Field(description="true: Proxy Normalization after each activation")
    num_groups: Optional[int] = Field(None, gt=0, description="groups of group norm")
    grouping: Optional[Literal["contiguous", "strided"]] = Field(None, description="how group norm groups channels")
    eps: Optional[float] = Field(None, ge=0, description="added to the norm's variance; default 1e-5, frn 1e-6")
    momentum: Optional[float] = Field(
        None, gt=0, le=1, description="batch norm: share of an update's images in running statistics; default 0.1"
    )
    proxy_eps: Optional[float] = Field(None, ge=0, description="added to the proxy's variance; the paper's code: 0.03")
    proxy_method: Optional[Literal["exact", "sampled"]] = Field(None, description="how proxy statistics are computed")
    num_samples: Optional[int] = Field(None, gt=0, description="proxy_method sampled: samples; default: 200")
    learn_proxy: Optional[bool] = Field(None, description="false: the proxy's own mean and scale stay at zero")
    kernel: Literal["auto", "fused", "reference"] = Field(
        "auto", description="fused kernels, or plain torch operations"
    )
    recompute: bool = Field(False, description="recompute normalized activations in backward instead of saving them")


class DataConfig(Section):
    """Which images, and how they are augmented."""

    name: Literal[
        "fashion_mnist",
        "fashion_scenes",
        "cifar10",
        "cifar100",
        "photo_patches",
        "image_folder",
        "image_shards",
        "generated",
    ] = Field(description="the data set; generated: synthetic images")
    dir: Optional[PathText] = Field(
        None, description="folder of the data (image_shards: or a URL); default: $DATA_DIR, else data/"
    )
    cache_dir: Optional[PathText] = Field(
        None, description="image_shards at a URL: folder for copies of the shards read"
    )
    shuffle_shards: Optional[int] = Field(
        None, gt=0, description="image_shards: shuffle images within this many shards at a time; default: within all"
    )
    fingerprint: Optional[Literal["contents"]] = Field(
        None,
        description="image_folder, image_shards: what --resume compares; contents reads all files at each start; "
        "default: number, names, labels and sizes",
    )
    image_size: Optional[int] = Field(None, gt=0, description="pixels per side; default: the data set's own")
    crop_padding: Optional[int] = Field(None, gt=0, description="pixels of zero padding before a random crop")
    min_crop_area: Optional[float] = Field(
        None, gt=0, le=1, description="random crops cover this share of the image or more"
    )
    horizontal_flip: bool = Field(False, description="mirror half of the training images")
    auto_augment: Optional[Literal["imagenet", "cifar10", "svhn"]] = Field(
        None, description="AutoAugment with the policy found for these images, after crop and mirroring"
    )
    rand_augment_magnitude: Optional[int] = Field(
        None,
        ge=0,
        le=30,
        description="RandAugment of this strength, after crop and mirroring; its paper's ResNet-50: 9",
    )
    rand_augment_operations: Optional[int] = Field(
        None, gt=0, description="RandAugment: operations on each image; default: 2"
    )
    random_erasing: Optional[float] = Field(
        None,
        gt=0,
        le=1,
        description="probability that a rectangle takes the data set's mean colour, after all else",
    )
    validation_images: Optional[int] = Field(
        None,
        gt=0,
        description="training images held out, the same share of each class, to choose the best checkpoint by; "
        "default: none",
    )
    workers: int = Field(0, ge=0, description="processes that load images, per training process")
    max_corrupt: Optional[int] = Field(
        None,
        gt=0,
        description="image_folder, image_shards: unreadable training images that may be replaced by others; default: 0",
    )
    max_megapixels: Optional[int] = Field(
        None, gt=0, description="image_folder, image_shards: larger images are refused by their header; default: 80"
    )
    num_classes: Optional[int] = Field(None, gt=1, description="generated images only: classes")
    num_train_images: Optional[int] = Field(None, gt=0, description="generated images only: images to train on")
    num_eval_images: Optional[int] = Field(None, gt=0, description="generated images only: images to evaluate on")

    @field_serializer("dir", when_used="json")
    def without_password(self, value: Optional[str]) -> Optional[str]:
        """Return the section as config.yaml, checkpoints and trackers show it."""
        return None if value is None else hide_passwords(value)

    @model_validator(mode="after")
    def check(self) -> "DataConfig":
        if self.dir is not None and has_hidden(self.dir):
            raise ValueError(
                f"dir {self.dir!r}: {HIDDEN} stands for a password, which is written nowhere; give the whole URL, "
                "or leave the password to the place's own settings (~/.netrc, environment variables)"
            )
        if self.auto_augment is not None and self.rand_augment_magnitude is not None:
            raise ValueError(
                f"auto_augment {self.auto_augment} and rand_augment_magnitude {self.rand_augment_magnitude} both "
                "choose operations; give one"
            )
        if self.rand_augment_magnitude is None:
            self.refuse_unused("no rand_augment_magnitude", ("rand_augment_operations",))
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


class RunConfig(Section):
    """What a run writes, and its seed."""

    seed: int = Field(ge=0, lt=2**63, description="determines initial weights, image order and augmentation")
    output_dir: Optional[PathText] = Field(
        None, description="run folder; default: runs/NAME, with -seedN appended if the seed is not the file's"
    )
    log_every_steps: int = Field(100, gt=0, description="steps between training records in metrics.jsonl")
    eval_every_epochs: int = Field(1, gt=0, description="epochs between evaluations")
    checkpoint_every_steps: Optional[int] = Field(None, gt=0, description="besides the one after each epoch")
    keep_checkpoints: int = Field(
        2, ge=2, description="newest checkpoints kept; at least two, in case the newest is damaged"
    )
    power_every_epochs: Optional[int] = Field(
        None,
        gt=0,
        description="epochs between records in power.jsonl, which begins with the initial weights; default: none",
    )
    power_images: Optional[int] = Field(
        None, gt=0, description="evaluation images measured for power.jsonl, the first ones; default: 1000"
    )
    evaluate_training_images: int = Field(
        10_000, ge=0, description="training images evaluated after the last epoch, without augmentation; 0: none"
    )
    reestimation_images: int = Field(
        10_000,
        ge=0,
        description="batch norm: training images over which its statistics are re-estimated after the last epoch, for "
        "a second evaluation; 0: none",
    )
    stop_signals: SignalNames = Field(
        (), description="signals that save and stop the run as SIGTERM does, e.g. [SIGUSR1] for a batch system"
    )
    tensorboard: bool = Field(False, description="also write for TensorBoard, in the run folder's tensorboard/")
    csv: bool = Field(False, description="also write the records as a table, metrics.csv")
    wandb: Literal["off", "online", "offline"] = Field("off", description="also log to wandb")
    wandb_project: str = Field("proxynorm", description="project that wandb files runs under")

    @model_validator(mode="after")
    def check(self) -> "RunConfig":
        if self.power_every_epochs is None:
            self.refuse_unused("no power_every_epochs", ("power_images",))
        if self.reestimation_images == 1:
            raise ValueError("reestimation_images 1 has no variance; use 2 or more, or 0 for no re-estimation")
        return self


class Config(Section):
    """One experiment."""

    model: ModelConfig
    norm: NormConfig
    data: DataConfig
    batch: BatchConfig
    regularization: RegularizationConfig = RegularizationConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    averaging: AveragingConfig = AveragingConfig()
    device: DeviceConfig = DeviceConfig()
    ipu: IpuConfig = IpuConfig()
    run: RunConfig
