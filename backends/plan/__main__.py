"""Plans from the command line.

    python -m backends.plan --config rn50_gn8pn --system bow --ipus 16

Without --splits it proposes: the number of stages, balanced splits and the largest micro-batch that fits.
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import replace
from typing import Any, Dict, List, Optional

import torch
from pydantic import ValidationError

from backends.plan.calibrate import fit_code_bytes, fit_rates, format_published
from backends.plan.compare import format_norm_comparison
from backends.plan.execution import Execution, OptimizerState
from backends.plan.hardware import SYSTEMS, find_system
from backends.plan.ipu_plan import IpuPlan, plan_ipu
from backends.plan.propose import largest_micro_batch, propose_plan
from backends.plan.published import KNOWN_GOOD, PUBLISHED, Configuration
from backends.plan.report import format_plan
from backends.plan.systems_table import plan_systems
from backends.plan.trace import Trace, trace_network
from configs import Config, ConfigError, load_config
from configs.arguments import MOST_BATCH, MOST_PIXELS, positive, real, whole
from configs.command_line import run_command
from configs.exit_codes import REFUSED, explain
from configs.explain import explain_options
from configs.schema.device import IpuConfig
from models import NETWORKS, build_model
from normact import NormActFactory

_DEFAULT_PROPORTION = 0.6  # PopTorch's available memory proportion
_CHANNELS = {"fashion_mnist": 1}  # of the data sets that are not coloured


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line. Returns 0 for a plan that fits, 2 for one that is refused and for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        if options.calibrate:
            return _calibrate()
        if options.published:
            print(format_published(_published_trace))
            return 0
        if options.config is None and options.model is None:
            raise ValueError("nothing to plan; give --config, --model, --published or --calibrate")
        return _plan(options)
    except (ConfigError, ValueError, OSError) as error:
        explain(error)
        return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backends.plan", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--config", metavar="NAME|PATH", help="an experiment: network, norm, image size, batch, optimizer, section ipu")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value of it; repeatable")
    add("--model", metavar="NAME", help="without --config: a network of models/")
    add("--norm", default="group", help="without --config: as in a configuration; default group")
    add("--no-proxy", action="store_true", help="without --config: no Proxy Normalization")
    add("--num-groups", type=positive, help="without --config: groups of group norm")
    add("--image-size", type=whole(most=MOST_PIXELS), help="default: the configuration's or the network's own")
    add("--system", choices=list(SYSTEMS), help="this and the next six: default as in section ipu of the configuration")
    add("--ipus", type=positive, help="all of them together, up to 256 in a Pod256")
    add("--precision", choices=["16.16", "16.32", "32.32"], help="bits of activations and of weights")
    add("--partials", choices=["half", "float"], help="type in which products are summed")
    add("--splits", nargs="*", metavar="PATH", help="modules at which stages begin; default: proposed")
    add("--checkpoints", nargs="+", metavar="PATH", help="with --splits: modules whose outputs are kept")
    add("--available-memory-proportion", type=real(0, 1), metavar="SHARE", help="of a tile's memory, for temporaries")
    add(
        "--ipus-per-replica",
        type=positive,
        metavar="F",
        help="stages to propose splits for; default: the fastest number",
    )
    add(
        "--global-batch-size",
        type=whole(most=MOST_BATCH),
        metavar="N",
        help="images per weight update; default: configuration's, or 1024",
    )
    add("--micro-batch-size", type=whole(most=MOST_BATCH), metavar="N", help="default: the largest that fits")
    add(
        "--compare-norms",
        type=whole(most=MOST_BATCH),
        metavar="N",
        help="also: batch norm with norm_batch_size N beside this norm",
    )
    add("--systems", action="store_true", help="instead: a table of one C600, one C2, and pods of 4, 16 and 64")
    add("--plot", metavar="PNG", help="also draw the stages as bars of memory")
    add("--published", action="store_true", help="instead: published throughputs against predicted ones")
    add("--calibrate", action="store_true", help="instead: refit the constants")
    return parser


def _plan(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.set) if options.config else None
    name = config.model.name if config else options.model
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is unknown; use one of {', '.join(NETWORKS)}")
    norm = _norm_arguments(config, options)
    image_size = options.image_size or (config.data.image_size if config else None) or NETWORKS[name].image_size
    channels = _CHANNELS.get(config.data.name, 3) if config else 3
    width = config.model.width if config else None
    trace = _trace(name, image_size, channels, width, **norm)
    if options.systems:
        return _plan_systems(options, trace, config)
    plan = _choose(options, trace, config)
    print(f"{name}, norm {norm['norm']}, images of {image_size} x {image_size}\n\n{format_plan(plan)}")
    if options.compare_norms:
        tied = _trace(name, image_size, channels, width, norm="batch", proxy=False)
        print("\n" + format_norm_comparison(tied, trace, options.compare_norms, plan.execution, plan.system))
    if options.plot:
        from backends.plan.plot import plot_plan  # matplotlib is needed for this alone

        plot_plan(plan, options.plot, name)
    return 0 if plan.fits else 2


def _plan_systems(options: argparse.Namespace, trace: Trace, config: Optional[Config]) -> int:
    for name in ("system", "ipus", "compare_norms", "plot"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} has no effect with --systems; leave it out")

    def plan_of(system: str, ipus: int) -> IpuPlan:
        return _choose(argparse.Namespace(**{**vars(options), "system": system, "ipus": ipus}), trace, config)

    table, fit = plan_systems(options.config or options.model, plan_of)
    print(table)
    return 0 if fit else 2


def _norm_arguments(config: Optional[Config], options: argparse.Namespace) -> Dict[str, Any]:
    if config is None:
        return {"norm": options.norm, "num_groups": options.num_groups, "proxy": False if options.no_proxy else None}
    given = config.norm.model_dump(exclude={"name", "kernel", "recompute"})
    return {"norm": config.norm.name, **{key: value for key, value in given.items() if value is not None}}


def _choose(options: argparse.Namespace, trace: Trace, config: Optional[Config]) -> IpuPlan:
    """Return the plan of the given splits, or a proposal."""
    ipu = _ipu_section(options, config)
    momentum = config.optimizer.momentum if config else 0.9
    like = Execution(
        micro_batch_size=1,
        gradient_accumulation=1,
        precision=ipu.precision,
        partials=ipu.partials,
        available_memory_proportion=(ipu.available_memory_proportion or _DEFAULT_PROPORTION,),
        num_io_tiles=ipu.io_tiles or 0,
        optimizer=OptimizerState(
            config.optimizer.name if config else "sgd",
            momentum=bool(momentum),
            sharded=ipu.optimizer_sharded,
            off_chip=ipu.optimizer_off_chip,
        ),
    )
    total = options.global_batch_size or (config.batch.global_batch_size if config else 1024)
    micro = options.micro_batch_size or (config.batch.micro_batch_size if config else None)
    if micro is None and config and config.batch.norm_batch_size > 1:
        micro = config.batch.norm_batch_size  # replicas of IPUs cannot share statistics
    system = find_system(ipu.system)
    if ipu.splits is None:
        return propose_plan(
            trace,
            like,
            ipus=ipu.ipus,
            global_batch_size=total,
            system=system,
            ipus_per_replica=options.ipus_per_replica,
            micro_batch_size=micro,
        )
    replicas, left = divmod(ipu.ipus, len(ipu.splits) + 1)
    if left:
        raise ValueError(f"{ipu.ipus} IPUs are not an integer x {len(ipu.splits) + 1} stages; change one of them")
    like = replace(like, replicas=replicas, splits=ipu.splits, checkpoints=ipu.checkpoints or ())
    like = replace(like, recompute=bool(like.checkpoints) or like.ipus_per_replica > 1)
    if micro is None:
        share = total // replicas // (2 * like.ipus_per_replica - 1)  # a pipeline needs 2F - 1 micro-batches
        most = max(1, min(share, largest_micro_batch(trace, like, system=system)))
        micro = max(size for size in range(1, most + 1) if total % (size * replicas) == 0 or size == 1)
    accumulation, remainder = divmod(total, micro * replicas)
    if remainder or accumulation == 0:
        raise ValueError(
            f"global_batch_size {total} is not an integer x micro_batch_size {micro} x {replicas} replicas; change one"
        )
    return plan_ipu(trace, replace(like, micro_batch_size=micro, gradient_accumulation=accumulation), system=system)


def _ipu_section(options: argparse.Namespace, config: Optional[Config]) -> IpuConfig:
    """Section `ipu` of the configuration (without one: what most published runs used), with what the options say."""
    section = config.ipu if config else IpuConfig(precision="16.16", partials="half", available_memory_proportion=0.15)
    names = ("system", "ipus", "precision", "partials", "splits", "checkpoints", "available_memory_proportion")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    try:
        return IpuConfig(**{**section.model_dump(), **given})
    except ValidationError as error:
        raise ValueError(explain_options(error)) from error


def _calibrate() -> int:
    rates = fit_rates(_published_trace)
    known = [row.configuration for row in PUBLISHED] + list(KNOWN_GOOD)
    print(f"PRODUCT_EFFICIENCY = {rates.product_efficiency:.3f}")
    print(f"PRODUCT_OVERHEAD_CYCLES = {rates.product_overhead_cycles:.0f}")
    print(f"ALL_REDUCE_EFFICIENCY = {rates.all_reduce_efficiency:.3f}")
    print(f"CODE_BYTES_PER_PRODUCT = {int(fit_code_bytes(_published_trace, known))}")  # rounded down: all must fit
    return 0


def _published_trace(configuration: Configuration) -> Trace:
    return _trace(
        configuration.network,
        configuration.image_size,
        3,
        None,
        norm=configuration.norm,
        num_groups=configuration.num_groups,
        proxy=False,
    )


@functools.lru_cache(maxsize=None)
def _trace(name: str, image_size: int, channels: int, width: Optional[int], **norm: Any) -> Trace:
    """On the meta device, so that no weights are drawn."""
    classes = 1000 if NETWORKS[name].image_size >= 224 else 10
    with torch.device("meta"):
        network = build_model(
            name,
            num_classes=classes,
            norm_act=NormActFactory(**norm),
            in_channels=channels,
            width=width,
        )
    return trace_network(network, image_size, channels)


if __name__ == "__main__":
    sys.exit(run_command(main))
