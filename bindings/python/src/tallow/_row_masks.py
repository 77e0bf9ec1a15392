"""Masks as what Tallow computes: rows of queries that see intervals of keys.

A mask is first an i32 tensor (batch, 1, seqlen_q, 2) of the interval [first, end) that each row
sees, empty for none. Runs of rows whose intervals grow like a causal mask's, slide like a window's,
or stay, become one sequence each, so padding, packed sequences, windows, chunks and two-way blocks
are all computed exactly, without the mask's (seqlen_q, seqlen_k) entries. A row that sees anything
but an interval cannot be honoured, and is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _torch_ops as ops


@torch.compiler.disable  # what masks hold decides what runs
def intervals(visible: Tensor) -> Tensor:
    """i32 (batch, 1, rows, 2) of a bool mask (batch, 1, rows, seqlen_k)."""
    seqlen_k = visible.shape[-1]
    key = torch.arange(seqlen_k, device=visible.device, dtype=torch.int32)
    count = visible.sum(-1, dtype=torch.int32)
    if seqlen_k == 0:
        return torch.stack([count, count], -1)
    first = torch.where(visible, key, seqlen_k).amin(-1)
    end = torch.where(visible, key + 1, 0).amax(-1)
    if not torch.equal(torch.where(count > 0, end - first, 0), count):
        raise ValueError(
            "attention_mask: a query sees keys that are no interval; tallow cannot "
            "honour this mask, eager and sdpa can"
        )
    return torch.stack([torch.where(count > 0, first, 0), end], -1)


@torch.compiler.disable
def visible_part(mask: Tensor) -> Tensor:
    """Bool (batch, 1, rows, seqlen_k) of a bool mask, or of one that is added to the scores."""
    while mask.dim() < 4:
        mask = mask[None]
    if mask.shape[1] > 1:
        if mask.stride(1) and not (mask == mask[:, :1]).all():
            raise ValueError("attention_mask differs between heads: tallow cannot honour it")
        mask = mask[:, :1]
    if mask.dtype == torch.bool:
        return mask
    hidden = mask <= torch.finfo(mask.dtype).min
    if not (hidden | (mask == 0)).all():
        raise ValueError(
            "attention_mask has values other than 0 and -inf (or the least finite "
            "number): tallow adds no bias to the scores"
        )
    return ~hidden


@dataclass(frozen=True)
class Runs:
    """Sequences of one kind. cu_seqlens_q: i32 (n + 1), rows of q packed over the batch. keys: i32
    (3, n), batch row, first key, end. The rest as attention_op takes it."""

    cu_seqlens_q: Tensor
    keys: Tensor
    longest: int
    left: int
    right: int


_CAUSAL, _SAME = 1, 2


def _steps(first: Any, end: Any, seqlen_q: int, window: int) -> Any:
    """How each row's interval follows from that of the row before it; 0: it does not."""
    count = end - first
    grows = (end[1:] == end[:-1] + 1) & (count[:-1] > 0)
    stays = first[1:] == first[:-1]
    fills = stays & ((window == 0) | (count[1:] <= window))
    slides = (first[1:] == first[:-1] + 1) & (count[1:] == window)
    step = np.where(stays & (end[1:] == end[:-1]), _SAME, 0)
    step[grows & (fills | slides)] = _CAUSAL
    step[np.arange(1, len(first)) % seqlen_q == 0] = 0  # another sequence of the batch
    return np.concatenate([[0], step])


def runs(rows: Tensor) -> list[Runs]:
    """The sequences of intervals (batch, 1, seqlen_q, 2): at most one Runs a kind of mask."""
    batch, _, seqlen_q, _ = rows.shape
    if batch * seqlen_q == 0:
        return []
    first, end = rows.cpu().numpy().astype(np.int64).reshape(-1, 2).T
    sliding = (first[1:] == first[:-1] + 1) & (end[1:] == end[:-1] + 1)
    window = int((end - first)[1:][sliding].max(initial=0))
    starts: list[int] = []
    kinds: list[int] = []
    steps = _steps(first, end, seqlen_q, window)
    alike = np.flatnonzero(np.diff(steps, prepend=-1, append=-1)).tolist()
    for i, after in zip(alike[:-1], alike[1:]):  # rows [i, after) follow in one way
        step = int(steps[i])
        if step and kinds[-1] in (0, step):
            kinds[-1] = step
        elif step:
            starts.append(i)
            kinds.append(step if after > i + 1 else 0)
        else:
            starts.extend(range(i, after))
            kinds.extend([0] * (after - i))
    bounds = np.array([*starts, batch * seqlen_q])
    kind = np.where(np.array(kinds) == _CAUSAL, _CAUSAL, _SAME)  # a row alone sees its interval
    made = []
    for of_kind, left, right in ((_CAUSAL, window - 1, 0), (_SAME, -1, -1)):
        mine = (kind == of_kind) & (end > first)[bounds[:-1]]
        if mine.any():
            made.append(_runs_of(rows, bounds, mine, first, end, left, right))
    return made


def _runs_of(
    rows: Tensor, bounds: Any, mine: Any, first: Any, end: Any, left: int, right: int
) -> Runs:
    """Runs that are not `mine` keep their rows and see no key, so the kinds' results add up."""
    begins, lasts = bounds[:-1], bounds[1:] - 1
    firsts, ends = np.where(mine, first[begins], 0), np.where(mine, end[lasts], 0)
    keys = np.stack([begins // rows.shape[2], firsts, ends]).astype(np.int32)
    starts = torch.from_numpy(bounds.astype(np.int32)).to(rows.device)
    longest = int(np.diff(bounds).max())
    return Runs(starts, torch.from_numpy(keys).to(rows.device), longest, left, right)


@torch.compiler.disable
def attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """q (batch, seqlen_q, heads, head_dim) over k, v (batch, seqlen_k, heads_kv, ...), each row
    over its interval; options of ops.attend. What `runs` found is kept on the tensor, for the
    layers that share it. Returns out and lse (batch, heads, seqlen_q)."""
    batch, found = getattr(rows, "tallow_runs", (None, []))
    if batch != q.shape[0]:
        found = runs(rows.expand(q.shape[0], -1, -1, -1))
        rows.tallow_runs = (q.shape[0], found)
    packed = q.flatten(0, 1)
    out = packed.new_zeros((*packed.shape[:-1], v.shape[-1]))
    lse = q.new_full((q.shape[2], packed.shape[0]), -torch.inf, dtype=torch.float32)
    for i, r in enumerate(found):
        part, part_lse = ops.attend(
            packed, k, v, cu_seqlens_q=r.cu_seqlens_q, max_seqlen_q=r.longest, keys=r.keys,
            left=r.left, right=r.right, **options)  # fmt: skip
        out, lse = (part, part_lse) if i == 0 else (out + part, torch.maximum(lse, part_lse))
    return out.unflatten(0, q.shape[:2]), lse.unflatten(1, q.shape[:2]).transpose(0, 1)
