"""python -m tallow.plot RESULTS... : pictures of what was measured.

RESULTS are files that `tallow divergence --json` or `python -m tallow.divergence --out` wrote, or
bench/run.sh and `tallow bench --json`, a line for every call, or runs beside other libraries
(peers-*.jsonl). Each file of calls becomes one picture, each run beside others one of prefill and
one of decode, all files of divergence together another.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Keys under which a call's speed may stand, and what they count.
SPEEDS = {"gflops": "GFLOP/s", "tflops_best": "TFLOP/s", "tflops": "TFLOP/s"}


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(f"tallow.plot: {error}; pip install 'tallow[plot]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def divergence(results: Mapping[str, Mapping[str, Any]]) -> Any:
    """1 - cosine by length, a line for every file and variant: mean, and P95 as a dashed line."""
    figure, axes = _pyplot().subplots(figsize=(7, 4.2), layout="constrained")
    color, middle, bands = 0, [], []
    for name, result in results.items():
        bands = result["bands"]
        middle = [(band["from"] + band["to"]) / 2 for band in bands]
        for variant in bands[0]["variants"]:
            label = f"{name}: {variant}" if len(results) > 1 else variant
            for key, style in (("mean", "-o"), ("p95", "--")):
                away = [max(1 - band["variants"][variant][key], 1e-16) for band in bands]
                axes.plot(middle, away, style, color=f"C{color}",
                          label=label if key == "mean" else None)  # fmt: skip
            color += 1
    axes.set(xscale="log", yscale="log", xlabel="tokens", title="mean (dashed: P95)")
    axes.minorticks_off()
    axes.set_xticks(middle, [f"{band['from']}-{band['to']}" for band in bands], fontsize=7,
                    rotation=35, ha="right", rotation_mode="anchor")  # fmt: skip
    axes.set_ylabel("1 - cosine of the pooled hidden state")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _label(call: Mapping[str, Any]) -> str:
    if "case" in call:
        return str(call["case"])
    words = [str(call[key]) for key in ("dtype", "mask") if key in call]
    sizes = {"q": "seqlen_q", "k": "seqlen_k", "d": "head_dim", "heads": "heads", "batch": "batch"}
    return " ".join(words + [f"{word} {call[key]}" for word, key in sizes.items() if key in call])


def _speed_key(call: Mapping[str, Any]) -> str | None:
    return next((key for key in SPEEDS if isinstance(call.get(key), (int, float))), None)


def bench(name: str, calls: Sequence[Mapping[str, Any]]) -> Any:
    """A bar for every call; where the file says it, how much of the machine's peak that is."""
    key = _speed_key(calls[0])
    if key is None:
        raise ValueError(f"{name}: no {', '.join(SPEEDS)} in its first call")
    figure, axes = _pyplot().subplots(figsize=(8, 1 + 0.3 * len(calls)), layout="constrained")
    speeds = [float(call.get(key, 0)) for call in calls]
    bars = axes.barh(range(len(calls)), speeds)
    shares = [call.get("fraction_of_peak") for call in calls]
    axes.bar_label(bars, [f"{speed:.4g}" + (f" ({share:.0%} of peak)" if share else "")
                          for speed, share in zip(speeds, shares)], padding=3)  # fmt: skip
    axes.set_yticks(range(len(calls)), [_label(call) for call in calls])
    axes.invert_yaxis()
    axes.margins(x=0.35, y=0.02)
    axes.set(xlabel=SPEEDS[key], title=name)
    return figure


# --------------------------------------------------------------------------------------------
# Runs beside other libraries: a cell has B, Sq, Sk, H, HK, D, causal and median_us by library
# --------------------------------------------------------------------------------------------

PEERS = {
    "tallow": "Tallow",
    "tallow_fast": "Tallow, fast",
    "sdpa_flash": "PyTorch FLASH",
    "sdpa_cudnn": "PyTorch cuDNN",
}
UNITS = {"prefill": "TFLOP/s", "decode": "GB/s of K and V"}

Cell = Mapping[str, Any]


def _work(cell: Cell) -> float:
    """A microsecond's operations in TFLOP/s, of which a causal square has half; a decode step's
    bytes of 16-bit K and V in GB/s."""
    size = 4e-6 * cell["B"] * cell["Sk"] * cell["D"]
    if cell["kind"] == "decode":
        return float(size * cell["HK"] * 1e3)
    return float(size * cell["H"] * cell["Sq"]) / (2 if cell["causal"] else 1)


def _panel(cell: Cell) -> tuple[tuple[Any, ...], tuple[Any, ...], str]:
    """Row and column of the cell's panel, to be sorted, and its title: all that it holds but the
    lengths, and the batches of prefill, which keep the number of tokens."""
    heads, mask = f"{cell['H']}/{cell['HK']} heads", "causal" if cell["causal"] else "no mask"
    if cell["kind"] == "decode":
        return (cell["H"], cell["HK"]), (cell["B"],), f"{heads}, batch {cell['B']}"
    column = (cell["H"] != cell["HK"], cell["D"], cell["H"], cell["HK"])
    return (not cell["causal"],), column, f"head_dim {cell['D']}, {heads}, {mask}"


def _draw(axes: Any, cells: Sequence[Cell], libraries: Sequence[str]) -> None:
    for i, library in enumerate(libraries):
        points = [(cell["Sk"], _work(cell) / cell["median_us"][library])
                  for cell in cells if cell["median_us"].get(library)]  # fmt: skip
        x, y = [at for at, _ in points], [speed for _, speed in points]
        axes.plot(x, y, "-o", markersize=3.5, linewidth=1.2 if i else 2, zorder=3 - 0.1 * i,
                  color=f"C{i}", label=PEERS.get(library, library))  # fmt: skip
    lengths = sorted({cell["Sk"] for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 else n for n in lengths])
    axes.set_title(_panel(cells[0])[-1], fontsize=9)
    axes.set_xlabel("keys" if cells[0]["kind"] == "decode" else "seqlen")
    axes.grid(alpha=0.3)


def _order(library: str) -> tuple[int, str]:
    return list(PEERS).index(library) if library in PEERS else len(PEERS), library


def peers(name: str, kind: str, cells: Sequence[Cell]) -> Any:
    """A panel for all heads and masks, or batches; a line for every library, ours first."""
    cells = sorted((cell for cell in cells if cell["kind"] == kind), key=lambda c: int(c["Sk"]))
    libraries = sorted({library for cell in cells for library in cell["median_us"]}, key=_order)
    rows, columns = (sorted({_panel(cell)[i] for cell in cells}) for i in (0, 1))
    figure, grid = _pyplot().subplots(
        len(rows), len(columns), figsize=(3.1 * len(columns), 0.7 + 2.6 * len(rows)),
        squeeze=False, sharey=True, layout="constrained")  # fmt: skip
    for row, of_row in zip(rows, grid):
        for column, axes in zip(columns, of_row):
            mine = [cell for cell in cells if _panel(cell)[:2] == (row, column)]
            if mine:
                _draw(axes, mine, libraries)
            else:
                axes.set_axis_off()
        of_row[0].set_ylabel(UNITS[kind])
    grid[0, 0].set_ylim(bottom=0)
    figure.suptitle(name)
    drawn = max(grid.flat, key=lambda axes: len(axes.lines))
    figure.legend(*drawn.get_legend_handles_labels(), loc="outside lower center",
                  ncols=len(libraries), frameon=False)  # fmt: skip
    return figure


def _peers_title(objects: Sequence[Mapping[str, Any]], kind: str) -> str:
    about = objects[0]
    return ", ".join([kind, *(str(about[key]) for key in ("dtype", "gpu", "date") if key in about)])


def save(figure: Any, prefix: str, formats: Sequence[str]) -> list[str]:
    paths = [f"{prefix}.{kind}" for kind in formats]
    for path in paths:
        figure.savefig(path, dpi=150)
    _pyplot().close(figure)
    return paths


def read(path: str) -> list[dict[str, Any]]:
    """The JSON objects of a file: one, a list of them, or one a line."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    return found if isinstance(found, list) else [found]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tallow.plot", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("results", nargs="+", metavar="RESULTS")
    parser.add_argument("--out", default=".", metavar="FOLDER", help="where pictures go")
    parser.add_argument("--format", action="append", choices=("png", "svg", "pdf"),
                        help="may be given several times (default png and svg)")  # fmt: skip
    arguments = parser.parse_args(argv)
    formats = arguments.format or ["png", "svg"]
    os.makedirs(arguments.out, exist_ok=True)
    bands, written = {}, []
    for path in arguments.results:
        name = os.path.splitext(os.path.basename(path))[0]
        try:
            objects = read(path)
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")
        calls = [call for call in objects if _speed_key(call)]
        first = objects[0].get("result", objects[0]) if objects else {}
        if "bands" in first:
            bands[name] = first
        elif cells := [cell for cell in objects if "median_us" in cell]:
            for kind in UNITS:
                if any(cell["kind"] == kind for cell in cells):
                    figure = peers(_peers_title(objects, kind), kind, cells)
                    written += save(
                        figure, os.path.join(arguments.out, f"{name}-{kind}"), formats)  # fmt: skip
        elif calls:
            written += save(bench(name, calls), os.path.join(arguments.out, name), formats)
        else:
            parser.error(f"{path}: has neither bands nor calls with median_us, {', '.join(SPEEDS)}")
    if bands:
        written += save(divergence(bands), os.path.join(arguments.out, "divergence"), formats)
    print("\n".join(written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
