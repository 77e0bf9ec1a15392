"""python -m tallow.divergence: how far two ways to run a transformers model part, by length.

Texts of every band of lengths run through the same weights twice: as a reference (f32 activations,
eager attention unless said otherwise) and as the candidate. Printed are the cosines of the two
mean-pooled final hidden states, and, for one text, those of every stage of every layer: embedding,
q, k and v projections, rotary Q and K, attention, MLP, layer. A stage that is much further from the
reference than anything it reads is where the runs part.

    python -m tallow.divergence --model PATH --texts texts.txt --out results/mine
    python -m tallow.divergence --model qwen2.5-vl-3b --attn sdpa --bands 0,200,4000 --device cuda
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

try:
    import torch
    import transformers
    from tqdm import tqdm

    from . import _stages
    from . import transformers as _registers  # noqa: F401 - attn_implementation="tallow"
except ImportError as error:
    raise SystemExit(f"tallow.divergence: {error}; pip install 'tallow[divergence]'") from error

from ._stages import Comparison, Stage, cosine

BANDS = "0,200,500,1000,2000,4000"

# Geometries for --model without weights at hand.
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936,
        "max_position_embeddings": 128000, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    },
    "tiny": {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 1000,
        "max_position_embeddings": 32768, "rope_theta": 1e6,
    },
}  # fmt: skip


# --------------------------------------------------------------------------------------------
# Models and texts
# --------------------------------------------------------------------------------------------


def _has_weights(folder: str) -> bool:
    return any(name.endswith((".safetensors", ".bin")) for name in os.listdir(folder))


def load(name: str, dtype: torch.dtype, seed: int, device: str) -> tuple[Any, str]:
    """The model and where its weights are from. A name of CONFIGS, or a folder with a config and no
    weights, gets normal weights from `seed`; anything else is transformers' to find."""
    if name not in CONFIGS and not (os.path.isdir(name) and not _has_weights(name)):
        return transformers.AutoModel.from_pretrained(name, dtype=dtype), name
    if name in CONFIGS:
        config = transformers.Qwen2Config(**CONFIGS[name])
    else:
        config = transformers.AutoConfig.from_pretrained(name)
    torch.manual_seed(seed)
    with torch.device(device):
        model = transformers.AutoModel.from_config(config, dtype=dtype)
    return model, f"seed {seed} on {torch.device(device).type}"


def _token_pool(arguments: argparse.Namespace, vocabulary: int) -> torch.Tensor:
    """All the tokens that texts are cut from."""
    longest = arguments.bands[-1]
    if arguments.texts is None:
        generator = torch.Generator().manual_seed(arguments.seed)
        return torch.randint(vocabulary, (4 * longest + 1,), generator=generator)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    with open(arguments.texts, encoding="utf-8") as file:
        ids = tokenizer(file.read(), add_special_tokens=False)["input_ids"]
    if len(ids) < longest:
        raise SystemExit(f"{arguments.texts}: {len(ids)} tokens, the last band needs {longest}")
    return torch.tensor(ids)


def texts(arguments: argparse.Namespace, vocabulary: int) -> list[tuple[int, torch.Tensor]]:
    """(band, tokens (1, n)), the same for the same seed."""
    pool = _token_pool(arguments, vocabulary)
    generator = torch.Generator().manual_seed(arguments.seed + 1)
    found = []
    for band, (start, end) in enumerate(zip(arguments.bands, arguments.bands[1:])):
        for _ in range(arguments.samples):
            n = int(torch.randint(max(start, 1), end, (), generator=generator))
            at = int(torch.randint(len(pool) - n + 1, (), generator=generator))
            found.append((band, pool[at : at + n][None]))
    return found


# --------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------


def pooled(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens of the final hidden state."""
    with torch.no_grad():
        hidden = model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    mean: torch.Tensor = hidden[0].double().mean(0)
    return mean


def summary(cosines: Sequence[float]) -> dict[str, float]:
    """P95 is the cosine that 95 % of the samples reach or exceed: of fewer than 20, the least."""
    ordered = sorted(cosines)
    return {
        "p95": ordered[len(ordered) // 20],
        "mean": sum(ordered) / len(ordered),
        "min": ordered[0],
    }


def bisect(reference: Any, candidate: Any, ids: torch.Tensor) -> list[Stage]:
    comparison = Comparison()
    for model, sink in ((reference, comparison.record), (candidate, comparison.compare)):
        with _stages.watch(model, sink):
            pooled(model, ids)
    return comparison.stages()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed and written."""
    start = time.monotonic()
    dtype, reference_dtype = (getattr(torch, name) for name in
                              (arguments.dtype, arguments.reference_dtype))  # fmt: skip
    candidate, weights = load(arguments.model, dtype, arguments.seed, arguments.device)
    candidate = candidate.eval().to(arguments.device)
    reference = copy.deepcopy(candidate).to(reference_dtype)
    candidate.set_attn_implementation(arguments.attn)
    reference.set_attn_implementation(arguments.reference)
    samples = texts(arguments, candidate.config.get_text_config().vocab_size)
    cosines: list[list[float]] = [[] for _ in arguments.bands[1:]]
    for band, ids in tqdm(samples, desc="texts", unit="text", disable=arguments.quiet):
        cosines[band].append(cosine(pooled(candidate, ids), pooled(reference, ids)))
    longest = max((ids for _, ids in samples), key=lambda ids: ids.shape[1])
    stages = bisect(reference, candidate, longest[:, : arguments.bisect_tokens])
    worst = _stages.guilty(stages)
    return {
        "model": arguments.model,
        "weights": weights,
        "texts": arguments.texts or f"random, seed {arguments.seed}",
        "reference": f"{arguments.reference}, {arguments.reference_dtype}",
        "device": str(candidate.device),
        "bands": [
            {"from": a, "to": b, "n": len(c), "variants": {arguments.attn: summary(c)}}
            for a, b, c in zip(arguments.bands, arguments.bands[1:], cosines)
        ],
        "stages": [dataclasses.asdict(stage) for stage in stages],
        "stage_tokens": min(longest.shape[1], arguments.bisect_tokens),
        "guilty_stage": f"layer {worst.layer}, {worst.stage}" if worst else "none",
        "seconds": time.monotonic() - start,
    }


# --------------------------------------------------------------------------------------------
# Output
# --------------------------------------------------------------------------------------------


def report(result: dict[str, Any]) -> str:
    lines = [f"{result['model']} ({result['weights']}), reference {result['reference']}", ""]
    lines.append(f"{'tokens':>13} {'n':>4}  {'attention':<20} {'P95':>9} {'mean':>9} {'min':>9}")
    for band in result["bands"]:
        for name, c in band["variants"].items():
            lines.append(f"{band['from']:>6}-{band['to']:<6} {band['n']:>4}  {name:<20} "
                         f"{c['p95']:.7f} {c['mean']:.7f} {c['min']:.7f}")  # fmt: skip
    lines += ["", f"Stages, one text of {result['stage_tokens']} tokens", ""]
    lines.append(f"{'layer':>5}  {'stage':<10} {'1 - cosine':>10} {'largest':>9} {'growth':>8}")
    for s in result["stages"]:
        layer, stage = ("", "embedding") if s["layer"] < 0 else (s["layer"], s["stage"])
        lines.append(f"{layer:>5}  {stage:<10} {1 - s['cosine']:>10.1e} {s['max_abs']:>9.2g} "
                     f"{s['growth']:>8.1f}")  # fmt: skip
    return "\n".join([*lines, "", f"Guilty stage: {result['guilty_stage']}"])


def write(result: dict[str, Any], prefix: str) -> list[str]:
    """PREFIX.json, PREFIX.csv with the bands, PREFIX-stages.csv, and PREFIX.png and .svg."""
    from . import plot

    os.makedirs(os.path.dirname(prefix) or ".", exist_ok=True)
    with open(f"{prefix}.json", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    bands = [
        {"from": b["from"], "to": b["to"], "n": b["n"], "attention": name, **c}
        for b in result["bands"]
        for name, c in b["variants"].items()
    ]
    for path, rows in ((f"{prefix}.csv", bands), (f"{prefix}-stages.csv", result["stages"])):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return [f"{prefix}.json", f"{prefix}.csv", f"{prefix}-stages.csv"] + plot.save(
        plot.divergence({os.path.basename(prefix): result}), prefix, ("png", "svg"))  # fmt: skip


def _bands(text: str) -> list[int]:
    bands = [int(word) if word.isdigit() else -1 for word in text.split(",")]
    if len(bands) < 2 or bands[0] < 0 or bands != sorted(set(bands)):
        raise argparse.ArgumentTypeError(f"{text}: must be rising numbers, such as {BANDS}")
    return bands


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return int(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tallow.divergence", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--model", default="tiny", help="a transformers model, a folder of one, or without weights "
        f"{' or '.join(CONFIGS)} (default tiny)")  # fmt: skip
    add("--attn", default="tallow", help="attention of the candidate (default tallow)")
    add("--reference", default="eager", help="attention of the reference: eager, sdpa, ...")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    add("--reference-dtype", default="float32", choices=("bfloat16", "float16", "float32"))
    add("--bands", type=_bands, default=BANDS, help=f"edges of the bands, tokens ({BANDS})")
    add("--samples", type=_positive, default=4, help="texts a band (default 4)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--texts", help="a UTF-8 file that texts are cut from")
    where.add_argument("--random", action="store_true", help="random tokens (the default)")
    add("--bisect-tokens", type=_positive, default=1024, help="tokens of the text whose stages are "
        "compared (default 1024); the reference's are kept in memory")  # fmt: skip
    add("--seed", type=int, default=1, help="of weights and texts (default 1)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", metavar="PREFIX", help="write PREFIX.json, .csv, -stages.csv, .png and .svg")
    add("--json", action="store_true", help="print JSON")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        result = measure(arguments)
    except OSError as error:  # no such model or texts
        raise SystemExit(f"tallow.divergence: {error}") from error
    print(json.dumps(result) if arguments.json else report(result))
    if arguments.out:
        print("\n".join(write(result, arguments.out)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
