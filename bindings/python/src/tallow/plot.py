"""python -m tallow.plot RESULTS... : pictures of what was measured.

RESULTS are files that `tallow divergence --json` or `python -m tallow.divergence --out` wrote, or
bench/run.sh and `tallow bench --json`, a line for every call. Each file of calls becomes one
picture, all files of divergence together another.
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
    axes.set_xticks(middle, [f"{band['from']}-{band['to']}" for band in bands], fontsize=7)
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
    axes.margins(x=0.25)
    axes.set(xlabel=SPEEDS[key], title=name)
    return figure


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
        objects = read(path)
        calls = [call for call in objects if _speed_key(call)]
        if objects and "bands" in objects[0]:
            bands[name] = objects[0]
        elif calls:
            written += save(bench(name, calls), os.path.join(arguments.out, name), formats)
        else:
            parser.error(f"{path}: has neither bands nor calls with {', '.join(SPEEDS)}")
    if bands:
        written += save(divergence(bands), os.path.join(arguments.out, "divergence"), formats)
    print("\n".join(written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
