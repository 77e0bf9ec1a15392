"""What every stage of a transformers decoder writes, recorded in one run, compared in another."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

ROUNDING = 1.3e-6  # 1 - cosine of one rounding to bf16
GUILTY = 100.0  # growth from which a stage is named

# What each stage of a layer reads; "before" is the layer before it, or the embedding.
READS = {
    "q_proj": ("before",),
    "k_proj": ("before",),
    "v_proj": ("before",),
    "rotary_q": ("q_proj",),
    "rotary_k": ("k_proj",),
    "attention": ("rotary_q", "rotary_k", "v_proj"),
    "mlp": ("attention", "before"),
    "layer": ("attention", "mlp", "before"),
}

Sink = Callable[[int, str, Tensor], None]
"""Takes (layer, stage, what the stage wrote); the embedding is layer -1."""


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _watched(model: Any) -> Iterator[tuple[Any, int, str]]:
    """(module, layer, stage) of what writes a stage by itself."""
    yield model.get_input_embeddings(), -1, "layer"
    for name, module in model.named_modules():
        found = re.search(r"(?:^|\.)layers\.(\d+)(?:\.(?:.*\.)?(q_proj|k_proj|v_proj|mlp))?$", name)
        if found:
            yield module, int(found[1]), found[2] or "layer"


def _recording(compute: Any, sink: Sink) -> Any:
    """The attention function `compute`, None for a model's own eager one, telling what it reads
    and writes."""

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        run = compute or sys.modules[type(module).__module__].eager_attention_forward
        out = run(module, query, key, value, *args, **kwargs)
        for stage, tensor in (("rotary_q", query), ("rotary_k", key), ("attention", out[0])):
            sink(module.layer_idx, stage, tensor)
        return out

    return forward


@contextlib.contextmanager
def watch(model: Any, sink: Sink) -> Iterator[None]:
    """Tells `sink` of every stage while open."""
    name = model.config._attn_implementation
    mapping = AttentionInterface._global_mapping
    before = mapping.get(name)
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, output, layer=layer, stage=stage: sink(layer, stage, _first(output)))
        for module, layer, stage in _watched(model)
    ]  # fmt: skip
    mapping[name] = _recording(before, sink)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if before is None:
            del mapping[name]
        else:
            mapping[name] = before


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten().to(a.device)
    scale = float(a.norm() * b.norm())
    return min(float(a @ b) / scale, 1.0) if scale else float(torch.equal(a, b))


@dataclass
class Stage:
    """A stage's output beside the reference's. growth: 1 - cosine, over that of the worst of what
    the stage reads, which counts as at least one rounding to bf16."""

    layer: int
    stage: str
    cosine: float
    max_abs: float
    growth: float = 0.0


class Comparison:
    """Two runs over the same tokens: pass `record` to the first watch, `compare` to the second."""

    def __init__(self) -> None:
        self._written: dict[tuple[int, str], Tensor] = {}
        self._found: dict[tuple[int, str], Stage] = {}

    def record(self, layer: int, stage: str, tensor: Tensor) -> None:
        self._written[layer, stage] = tensor.detach().clone()

    def compare(self, layer: int, stage: str, tensor: Tensor) -> None:
        wanted = self._written.pop((layer, stage))
        difference = (tensor.detach().float() - wanted.float()).abs().max()
        self._found[layer, stage] = Stage(layer, stage, cosine(tensor, wanted), float(difference))

    def stages(self) -> list[Stage]:
        """In the order of the model, with growths."""
        order = list(READS)
        keys = sorted(self._found, key=lambda key: (key[0], order.index(key[1])))
        for layer, stage in keys:
            if layer < 0:
                continue
            reads = [
                self._found.get((layer - 1, "layer") if name == "before" else (layer, name))
                for name in READS[stage]
            ]
            worst = max([1 - s.cosine for s in reads if s] + [ROUNDING])
            found = self._found[layer, stage]
            found.growth = (1 - found.cosine) / worst
        return [self._found[key] for key in keys]


def guilty(stages: list[Stage]) -> Stage | None:
    """The stage where the runs part: the largest growth, if it is one."""
    worst = max(stages, key=lambda s: s.growth, default=None)
    return worst if worst and worst.growth >= GUILTY else None
