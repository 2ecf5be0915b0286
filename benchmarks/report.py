"""The tables of docs/speed.md, written from the JSON files between two marker comments.

    python -m benchmarks.report                 prints the tables
    python -m benchmarks.report --write         writes them into docs/speed.md, and the plots into benchmarks/plots/

No number there is typed by hand. Running it twice changes nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from benchmarks.inference import FOLDED_GNPN
from benchmarks.loading import ONE_THREAD
from benchmarks.plots import PLOTS, draw_plots
from benchmarks.results import RESULTS, ROOT

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
PAGE = ROOT / "docs/speed.md"
Results = Dict[str, Dict[str, Any]]
NEEDED = ("layer", "step", "memory", "inference", "peers", "growth", "data")


class MissingResultError(Exception):
    """A result file is not there, or lacks a field; the message says which and how to make it."""


def load_results(folder: Path) -> Results:
    """Return every result file, by name; that of a GPU may be absent.

    Raises:
        MissingResultError: another one is.
    """
    results: Results = {}
    for name in (*NEEDED, "layer_cuda"):
        path = folder / f"{name}.json"
        if path.exists():
            results[name] = json.loads(path.read_text())
        elif name in NEEDED:
            raise MissingResultError(f"{path} is not there; run: python -m benchmarks.{name}")
    return results


def tables(results: Results, command: str) -> str:
    """Return the Markdown between the markers, made by `command`.

    Raises:
        MissingResultError: a file lacks a field.
    """
    sections: Sequence[Callable[[Results], List[str]]] = (
        _layer_table, _step_table, _memory_table, _inference_table, _peer_table, _data_table, _gpu_table, _plots,
    )  # fmt: skip
    try:
        lines = _introduction(results, command) + [line for section in sections for line in section(results)]
    except KeyError as error:
        raise MissingResultError(f"a result file has no field {error}; run ./run_benchmarks.sh again") from error
    return "\n".join(lines)


def between_markers(text: str, content: str) -> str:
    """Return the text with what is between the markers replaced.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text must hold the lines {BEGIN} and {END} once each, in this order")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"


def _introduction(results: Results, command: str) -> List[str]:
    machine, settings, runs = results["step"]["machine"], results["step"]["settings"], results["step"].get("runs", 1)
    taken = "one run" if runs == 1 else f"the worst of {runs} runs"
    commits = sorted({row["commit"] for name, result in results.items() if name != "layer" for row in result["rows"]})
    return [
        f"Machine: {machine['machine_class']}; {machine['threads']} threads, torch {machine['torch']}, commit "
        f"{', '.join(commits)}. All numbers are ratios to",
        "eager batch norm + activation in the same process: below 1 is faster or smaller. Medians of at least "
        f"{settings['repetitions']} interleaved repetitions; {taken};",
        f"written by `{command}`. How to read and improve them: [benchmarks/NOTES.md](../benchmarks/NOTES.md).",
        "",
    ]


def _layer_table(results: Results) -> List[str]:
    rows = [
        [row["setting"], _ratio(row["geometric_mean"]["ours"]), _shares(row["shapes"])]
        for row in results["layer"]["layers"]
    ]
    heads = ["one layer with GN+PN, forward plus backward", "time / batch norm", "share of a copy's bandwidth"]
    microseconds = ", ".join(
        f"{name} {value:.0f} us" for name, value in results["layer"]["proxy_statistics_us"].items()
    )
    return [*_table(heads, rows), f"Proxy statistics of 2048 channels: {microseconds}.", ""]


def _shares(shapes: List[Dict[str, Any]]) -> str:
    shares = [shape["copy_bandwidth_share"] for shape in shapes if shape["copy_bandwidth_share"] is not None]
    return f"{100 * min(shares):.0f}-{100 * max(shares):.0f} %" if shares else ""


def _step_table(results: Results) -> List[str]:
    rows = []
    for row in results["step"]["rows"]:
        for name, timing in row["timings"].items():
            spread = f"{timing['first_quartile']:.2f}-{timing['third_quartile']:.2f}"
            rows.append([row["workload"], name, _ratio(timing["ratio"]), spread, _ratio(row["norm_overhead"][name])])
    heads = ["training step", "norm", "time / batch norm", "quartiles", "(t - none) / (batch norm - none)"]
    return _table(heads, rows)


def _memory_table(results: Results) -> List[str]:
    rows = [
        [row["workload"], name, _ratio(numbers["total_ratio"]), _ratio(numbers["activation_ratio"])]
        for row in results["memory"]["rows"]
        for name, numbers in row["variants"].items()
    ]
    heads = ["kept for backward", "norm", "bytes / batch norm", "without copies of weights"]
    return _table(heads, rows)


def _inference_table(results: Results) -> List[str]:
    rows = [[row["workload"], _ratio(row["timings"][FOLDED_GNPN]["ratio"])] for row in results["inference"]["rows"]]
    return _table(["evaluation, GN+PN folded", "time / batch norm folded into convolutions"], rows)


def _peer_table(results: Results) -> List[str]:
    rows = results["peers"]["rows"]
    names = list(rows[0]["geometric_mean"])
    body = [[name, *(_ratio(row["geometric_mean"][name]) for row in rows)] for name in names]
    return _table(["one layer, other ways", *(row["setting"] for row in rows)], body)


def _data_table(results: Results) -> List[str]:
    settings, rows = results["data"]["settings"], results["data"]["rows"]
    body = [
        [
            row["name"],
            f"{row['images_per_second']:.0f}",
            _ratio(row["speed_ratio"]),
            f"{row['first_quartile']:.2f}-{row['third_quartile']:.2f}",
        ]
        for row in rows
        if "speed_ratio" in row
    ]
    files = f"JPEG files of {settings['width']} x {settings['height']}, quality {settings['quality']}"
    heads = [f"{files}, decoded, cropped, resized", "images/s, one thread", "speed / torchvision's", "quartiles"]
    training = [
        f"{row['name']}: {row['loader_alone']:.0f} images/s alone, {row['together']:.0f} while a network trains that "
        f"could take {row['network_alone']:.0f}."
        for row in rows
        if "together" in row
    ]
    return [*_table(heads, body), *_loader_table(rows), *training, ""]


def _loader_table(rows: List[Dict[str, Any]]) -> List[str]:
    body, loaders = [], []
    for row in rows:
        if "thread_ratio" in row:
            rates, ratios = row["images_per_second"], row["thread_ratio"]
            loaders = list(ratios)
            loaded = [f"{rates[loader]:.0f} ({_ratio(ratios[loader])})" for loader in loaders]
            body.append([row["name"], str(row["batch"]), f"{rates[ONE_THREAD]:.0f}", *loaded])
    columns = [f"loading processes: {loader}" for loader in loaders]
    return _table(["batches from a loader, images/s (ratio to one thread)", "batch", ONE_THREAD, *columns], body)


def _gpu_table(results: Results) -> List[str]:
    if "layer_cuda" not in results:
        return ["GPU: not measured.", ""]
    rows = [
        [row["setting"], _ratio(row["geometric_mean"]["ours"]), _shares(row["shapes"])]
        for row in results["layer_cuda"]["rows"]
    ]
    device = results["layer_cuda"]["machine"]["machine_class"]
    return _table([f"one layer on {device}", "time / batch norm", "share of a copy's bandwidth"], rows)


def _plots(results: Results) -> List[str]:
    folder = PLOTS.relative_to(ROOT)
    names = ", ".join(f"[{name}](../{folder}/{name}.svg)" for name in ("bandwidth", "ratios", "growth"))
    return [f"Plots: {names}."]


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _table(heads: List[str], rows: List[List[str]]) -> List[str]:
    rule = ["---"] * len(heads)
    return [*("| " + " | ".join(row) + " |" for row in (heads, rule, *rows)), ""]


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown file with the two markers")
    parser.add_argument("--plots", type=Path, default=PLOTS, help="folder of the plots")
    parser.add_argument(
        "--command", default="./run_benchmarks.sh", help="the command that made the results, for the page to name"
    )
    parser.add_argument("--write", action="store_true", help="rewrite the page and draw the plots")
    options = parser.parse_args(arguments)
    results = load_results(options.results)
    content = tables(results, options.command)
    if not options.write:
        print(content)
        return
    options.page.write_text(between_markers(options.page.read_text(), content))
    draw_plots(results, options.plots)


if __name__ == "__main__":
    main()
