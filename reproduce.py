"""Runs a grid of experiments, or what is missing of it, and prints its table.

    python reproduce.py small_batch

A grid is a file of configs/grids. Its runs are processes of train.py, one core and one thread each. What is stopped or
killed goes on with the same command; finished runs leave one JSON file each and are not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from configs import ConfigError
from configs.arguments import positive
from configs.command_line import run_command
from configs.counted import counted
from configs.exit_codes import DONE, EXPLAINED, FAILED, exit_code_of_signal, explain
from configs.output_place import check_output_folder
from grids.console import say
from grids.grid_lock import grid_lock
from grids.load import find_grid, load_grid
from grids.plan import Plan, Selection, build_plan
from grids.results import Results
from grids.runner import Outcome, Runner, changed_text
from grids.seeds import check_name, parse_seeds
from grids.state import folder_of, state_of
from grids.table import build_table

_CHANGED_SHOWN = 5


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return the exit code.

    0 all runs have a result, 1 some failed, 2 refused before anything ran, 74 disk, 75 and 130 stopped by SIGTERM and
    SIGINT.
    """
    options = parse_arguments(arguments)
    try:
        return reproduce(options)
    except EXPLAINED as error:
        return explain(error)


def parse_arguments(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("grid", metavar="NAME|PATH", help="a grid of configs/grids, or a YAML file")
    add("--seeds", metavar="0-5", help="these seeds instead of the grid's")
    add(
        "--jobs", type=positive, default=len(os.sched_getaffinity(0)), help="runs at a time; default: one for each core"
    )
    add("--rows", metavar="A,B", help="only these rows")
    add("--columns", metavar="A,B", help="only these columns")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override for every run; needs --name")
    add("--name", help="what the results are filed under; default: the grid's name")
    add("--out", metavar="DIR", help="the runs' folders; default: runs/grids/<name>")
    add("--results", metavar="DIR", help="the results' folder; default: docs/results/<name>")
    add("--rerun", action="store_true", help="rerun from the beginning what was run with another configuration")
    add("--list", action="store_true", help="print where each run stands, and stop")
    return parser.parse_args(arguments)


def reproduce(options: argparse.Namespace) -> int:
    """Run one grid, from its file to its table, and return the exit code."""
    grid = load_grid(options.grid)
    if options.set and options.name is None:
        raise ConfigError("--set makes it another grid; give it a --name, under which its runs and results are kept")
    try:
        name = find_grid(options.grid).stem if options.name is None else options.name
        check_name(name)
        seeds = None if options.seeds is None else parse_seeds(options.seeds)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    plan = build_plan(grid, Selection(_words(options.rows), _words(options.columns), seeds, tuple(options.set)))
    results = Results(name, Path(options.results or f"docs/results/{name}"))
    runs = Path(options.out or f"runs/grids/{name}")
    if options.list:
        say("\n".join(f"{kind:<8} {text}" for kind, text in list_states(plan, results, runs)))
        return 0
    check_output_folder(results.folder)
    say(f"{name}: {grid.title}")
    with grid_lock(runs) as lock:
        trials = plan.trials()
        if not options.rerun:
            refuse_changed(plan, results, runs)
        missing = [trial for trial in trials if state_of(trial, plan, results, folder_of(trial, runs)).kind != "done"]
        say(
            f"{counted(len(trials), 'run')}, {len(trials) - len(missing)} of them done; {options.jobs} at a time, "
            f"in {runs}"
        )
        runner = Runner(plan, results, runs, rerun=options.rerun, keep_checkpoints=grid.keep_checkpoints)
        outcome = runner.run(missing, options.jobs, lock)
    say(f"\n{build_table(plan, results, grid.figures)}\n\nresults: {results.folder}")
    return tell(outcome)


def refuse_changed(plan: Plan, results: Results, runs: Path) -> None:
    """Refuse runs with another configuration than the grid has now.

    Raises:
        ConfigError: as said.
    """
    found = [(trial, state_of(trial, plan, results, folder_of(trial, runs))) for trial in plan.trials()]
    changed = [f"{trial}: {changed_text(state)}" for trial, state in found if state.kind == "changed"]
    if changed:
        more = f"\n... and {len(changed) - _CHANGED_SHOWN} more" if len(changed) > _CHANGED_SHOWN else ""
        raise ConfigError(
            "\n".join(changed[:_CHANGED_SHOWN])
            + f"{more}\nRun them again, from the beginning, with --rerun, or undo the change"
        )


def list_states(plan: Plan, results: Results, runs: Path) -> List[Tuple[str, str]]:
    """(state, run and what there is to say) of every run."""
    lines: List[Tuple[str, str]] = []
    for trial in plan.trials():
        state = state_of(trial, plan, results, folder_of(trial, runs))
        rate = f", learning rate {state.config.optimizer.learning_rate:g}" if state.config else ""
        lines.append((state.kind, f"{trial}{rate}" + "".join(f": {reason}" for reason in state.reasons[:1])))
    return lines


def tell(outcome: Outcome) -> int:
    """Print what failed, last, where it is seen; return the exit code."""
    for trial, reason in outcome.failed.items():
        print(f"failed: {trial}: {reason}", file=sys.stderr)
    if outcome.stopped_by:
        print("stopped; the same command continues", file=sys.stderr)
        return exit_code_of_signal(outcome.stopped_by)
    return FAILED if outcome.failed else DONE


def _words(text: Optional[str]) -> Optional[List[str]]:
    return None if text is None else [word.strip() for word in text.split(",")]


if __name__ == "__main__":
    sys.exit(run_command(main))
