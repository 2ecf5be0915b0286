"""What fits on IPUs and how fast, before anything is compiled. Plain torch; nothing of PopTorch is needed.

    execution = Execution(micro_batch_size=8, gradient_accumulation=16, replicas=4, splits=("stages.1.0", "stages.2.1"))
    plan = plan_ipu(network, execution, image_size=224, system="mk2")
    plan.fits, plan.refusals, plan.images_per_second, plan.stages
    print(format_plan(plan))                          # a table: one line for each stage

    propose_splits(network, 4, image_size=224, system="mk2")               # ("stages.0.2", ...)
    largest_micro_batch(network, execution, image_size=224, system="mk2")  # 0 where not even one image fits
    trace = trace_network(network, 224)  # taken once, in place of the network and its image_size
    propose_plan(trace, execution, ipus=16, global_batch_size=1024, system=find_system("bow"))  # all of it

The network may live on any device and stays untouched: a copy runs once on the meta device. `python -m backends.plan`
does all of it from the command line. What the numbers rest on is in constants.py (calibrated), hardware.py (sourced)
and published.py (the throughputs they were calibrated on and judged by).
"""

from backends.plan.execution import Execution, OptimizerState
from backends.plan.ipu_plan import IpuPlan, plan_ipu
from backends.plan.propose import largest_micro_batch, propose_plan
from backends.plan.report import format_plan
from backends.plan.splits import propose_splits

__all__ = [
    "Execution",
    "IpuPlan",
    "OptimizerState",
    "format_plan",
    "largest_micro_batch",
    "plan_ipu",
    "propose_plan",
    "propose_splits",
]
