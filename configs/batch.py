"""All batch arithmetic of a run, done once. It refuses what cannot be honoured and never rounds.

    global_batch_size = micro_batch_size * gradient_accumulation * replicas

global_batch_size and norm_batch_size say what the experiment means. The rest says how a machine executes it: with a
normalization that does not depend on the batch, every execution gives the same weights up to rounding.
"""

from dataclasses import dataclass
from typing import Iterator, List, Optional

from configs.errors import ConfigError
from configs.schema import BatchConfig


@dataclass(frozen=True)
class BatchPlan:
    """How one weight update's images are cut up. Built by `plan_batch`, which checks it.

    Attributes:
        global_batch_size: images per weight update over all replicas; never includes device_iterations.
        norm_batch_size: images that share normalization statistics.
        micro_batch_size: images in one forward and backward of one replica.
        gradient_accumulation: micro-batches that one replica sums before a weight update.
        replicas: copies of the model over all processes and devices.
        local_replicas: those of this process.
        device_iterations: weight updates per call of the device.
    """

    global_batch_size: int
    norm_batch_size: int
    micro_batch_size: int
    gradient_accumulation: int
    replicas: int
    local_replicas: int
    device_iterations: int = 1

    @property
    def norm_replicas(self) -> int:
        """Replicas that share normalization statistics; 1 means that each has its own."""
        return max(1, self.norm_batch_size // self.micro_batch_size)

    @property
    def local_batch_size(self) -> int:
        """Images per weight update that this process loads."""
        return self.micro_batch_size * self.gradient_accumulation * self.local_replicas

    def __str__(self) -> str:
        text = (
            f"global_batch_size {self.global_batch_size} = micro_batch_size {self.micro_batch_size}"
            f" x gradient_accumulation {self.gradient_accumulation} x replicas {self.replicas}"
        )
        if self.norm_batch_size == 1:
            return f"{text}; norm_batch_size 1, each image by itself"
        if self.norm_batch_size < self.micro_batch_size:
            return f"{text}; norm_batch_size {self.norm_batch_size}, within a micro-batch"
        if self.norm_batch_size > self.micro_batch_size:
            return f"{text}; norm_batch_size {self.norm_batch_size}, shared by {self.norm_replicas} replicas"
        return f"{text}; norm_batch_size {self.norm_batch_size}, one micro-batch"


def plan_batch(
    batch: BatchConfig,
    *,
    uses_batch_norm: bool,
    replicas: int,
    local_replicas: int,
    max_micro_batch_size: int,
    can_share_statistics: bool,
    device_iterations: int = 1,
) -> BatchPlan:
    """Return the plan with the largest micro-batch that honours `batch` on these replicas.

    Args:
        batch: the section of the configuration.
        uses_batch_norm: whether the network's statistics depend on norm_batch_size.
        replicas: over all processes and devices.
        local_replicas: those of this process.
        max_micro_batch_size: images that fit the device's memory; a given micro_batch_size overrules it.
        can_share_statistics: whether replicas of this device can share normalization statistics.
        device_iterations: weight updates per call of the device.

    Raises:
        ConfigError: the sizes do not divide, or norm_batch_size cannot be honoured. The message has the numbers and
            two ways out.
    """
    total = batch.global_batch_size
    if total % replicas:
        below = total // replicas * replicas
        nearest = " or ".join(str(size) for size in (below, below + replicas) if size)
        raise ConfigError(
            f"batch.global_batch_size {total} is not an integer x replicas {replicas}; "
            f"use {nearest}, or change the number of replicas"
        )
    _check_norm_batch_size(batch, uses_batch_norm)
    replica_batch = total // replicas
    if batch.micro_batch_size is None:
        candidates = [size for size in _divisors(replica_batch) if size <= max_micro_batch_size]
    elif replica_batch % batch.micro_batch_size == 0:
        candidates = [batch.micro_batch_size]
    else:
        raise ConfigError(
            f"batch.global_batch_size {total} is not batch.micro_batch_size {batch.micro_batch_size} "
            f"x replicas {replicas} "
            f"x an integer; use a micro_batch_size of {_near(replica_batch, batch.micro_batch_size)}, "
            f"or a global_batch_size that is a multiple of {batch.micro_batch_size * replicas}"
        )
    reasons: List[str] = []
    for micro in sorted(candidates, reverse=True):
        reason = _why_norm_not_honoured(batch.norm_batch_size, micro, replicas, can_share_statistics, uses_batch_norm)
        if reason is None:
            return BatchPlan(
                global_batch_size=total,
                norm_batch_size=batch.norm_batch_size,
                micro_batch_size=micro,
                gradient_accumulation=replica_batch // micro,
                replicas=replicas,
                local_replicas=local_replicas,
                device_iterations=device_iterations,
            )
        reasons.append(reason)
    detail = reasons[0] if reasons else f"no micro-batch of up to {max_micro_batch_size} images divides {replica_batch}"
    raise ConfigError(
        f"batch.norm_batch_size {batch.norm_batch_size} cannot be honoured with global_batch_size {total} on "
        f"{replicas} replicas: {detail}; change norm_batch_size to a divisor of {replica_batch} that fits the memory "
        f"(at most {max_micro_batch_size}), or use a norm that does not depend on the batch "
        "(norm.name group, norm.proxy true)"
    )


def _check_norm_batch_size(batch: BatchConfig, uses_batch_norm: bool) -> None:
    if not uses_batch_norm and batch.norm_batch_size != 1:
        raise ConfigError(
            f"batch.norm_batch_size {batch.norm_batch_size} with a norm of each image by itself; "
            "set norm_batch_size to 1, "
            "or norm.name to batch"
        )
    if uses_batch_norm and batch.norm_batch_size == 1:
        raise ConfigError(
            "batch.norm_batch_size 1 with norm.name batch leaves a single image for the statistics; "
            "set norm_batch_size to 2 or more, or norm.name to instance"
        )


def _why_norm_not_honoured(
    norm: int, micro: int, replicas: int, can_share: bool, uses_batch_norm: bool
) -> Optional[str]:
    if not uses_batch_norm or micro % norm == 0:
        return None
    if norm % micro:
        return f"micro_batch_size {micro} and norm_batch_size {norm} do not divide each other"
    sharing = norm // micro
    if replicas % sharing:
        return f"{norm} images are {sharing} replicas' micro-batches of {micro}; {replicas} replicas are not a multiple"
    if not can_share:
        return f"{norm} images are {sharing} replicas' micro-batches of {micro}; replicas cannot share statistics here"
    return None


def _divisors(number: int) -> Iterator[int]:
    return (size for size in range(1, number + 1) if number % size == 0)


def _near(number: int, wanted: int) -> str:
    below = max(size for size in _divisors(number) if size <= wanted)
    above = min((size for size in _divisors(number) if size >= wanted), default=number)
    return str(below) if below == above else f"{below} or {above}"
