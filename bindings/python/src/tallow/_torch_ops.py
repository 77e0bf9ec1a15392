"""Attention as PyTorch custom operators, with shapes for torch.compile and a backward pass.

The forward pass is tallow.attention. The library has no backward kernels: gradients are recomputed
here from q, k, v, out and lse with PyTorch operations in f32, one sequence and one key head at a
time, so they take memory for (group, seqlen_q, seqlen_k) scores and the time of matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from ._attention import Rotary, attention
from ._attention import rotary as rotate

# ruff: noqa: UP045 - torch.library reads these annotations and wants Optional

# --------------------------------------------------------------------------------------------
# Scores, one sequence and one key head at a time
# --------------------------------------------------------------------------------------------


def philox_keep(
    rng: Sequence[int], head: int, sq: int, sk: int, p: float, device: torch.device
) -> Tensor:
    """(sq, sk) bool: the weights that dropout keeps, as tallow.h says; head is b * heads + h."""
    seed, offset = rng
    word = 0xFFFFFFFF
    shape = (sq, -(-sk // 4))
    c = [
        torch.arange(shape[1], device=device).expand(shape),
        torch.arange(sq, device=device)[:, None].expand(shape),
        torch.full(shape, head, device=device),
        torch.full(shape, offset & word, device=device),
    ]
    key = [seed & word, seed >> 32 ^ offset >> 32]
    for _ in range(10):  # products wrap at 64 bits, as they should
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 & word ^ c[1] ^ key[0], b & word, a >> 32 & word ^ c[3] ^ key[1], a & word]
        key = [key[0] + 0x9E3779B9 & word, key[1] + 0xBB67AE85 & word]
    threshold = torch.tensor(p, dtype=torch.float32).item() * 2**32
    return torch.stack(c, -1).reshape(sq, -1)[:, :sk] >= threshold


def _group_scores(
    q: Tensor,
    k: Tensor,
    slopes: Optional[Tensor],
    scale: float,
    left: int,
    right: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Scores (group, sq, sk) f32 of q (sq, group, d) and k (sk, d), -inf where hidden; and
    d score / d (scale * dot)."""
    sq, sk = q.shape[0], k.shape[0]
    scores = torch.einsum("ihd,jd->hij", q.float(), k.float()) * scale
    slope = torch.ones_like(scores)
    if softcap > 0:
        bent = torch.tanh(scores / softcap)
        scores, slope = softcap * bent, 1 - bent * bent
    ahead = torch.arange(sk, device=q.device) - (
        torch.arange(sq, device=q.device)[:, None] + sk - sq
    )
    if slopes is not None:
        scores = scores - slopes.float()[:, None, None] * ahead.abs()
    if left >= 0:
        scores = scores.masked_fill(ahead < -left, -math.inf)
    if right >= 0:
        scores = scores.masked_fill(ahead > right, -math.inf)
    return scores, slope


Where = tuple[int, slice] | slice


def _sequences(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    keys: Optional[Tensor],
) -> Iterator[tuple[int, Where, Where]]:
    """(b, where its rows lie in q, where its keys in k); keys as attention_op takes them."""
    starts_q = cu_seqlens_q.tolist() if cu_seqlens_q is not None else None
    starts_k = cu_seqlens_k.tolist() if cu_seqlens_k is not None else None
    ranges = keys.tolist() if keys is not None else None
    for b in range(q.shape[0] if starts_q is None else len(starts_q) - 1):
        rows: Where = (b, slice(None)) if starts_q is None else slice(*starts_q[b : b + 2])
        if ranges is not None:
            yield b, rows, (ranges[0][b], slice(ranges[1][b], ranges[2][b]))
        else:
            yield b, rows, (b, slice(None)) if starts_k is None else slice(*starts_k[b : b + 2])


def _lse_of(lse: Tensor, b: int, rows: Where) -> Tensor:
    return lse[:, rows] if isinstance(rows, slice) else lse[b]


def _slopes_of(alibi_slopes: Optional[Tensor], b: int, heads: slice) -> Optional[Tensor]:
    if alibi_slopes is None:
        return None
    return (alibi_slopes if alibi_slopes.dim() == 1 else alibi_slopes[b])[heads]


# --------------------------------------------------------------------------------------------
# Attention
# --------------------------------------------------------------------------------------------


def padded(x: Tensor) -> Tensor:
    """The last dimension contiguous, and padded with zeros to a multiple of 8: no score changes,
    and the new columns of out are zero."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x if x.shape[-1] % 8 == 0 else torch.nn.functional.pad(x, (0, -x.shape[-1] % 8))


def new_rng(dropout_p: float) -> Optional[Tensor]:
    """Seed and offset from torch's generator, when they are needed."""
    return torch.randint(2**63 - 1, (2,)) if dropout_p > 0 else None


@torch.library.custom_op("tallow::attention", mutates_args=())
def attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Optional[Tensor] = None,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
    block_table: Optional[Tensor] = None,
    keys: Optional[Tensor] = None,
    alibi_slopes: Optional[Tensor] = None,
    sinks: Optional[Tensor] = None,
    softmax_scale: float = 1.0,
    left: int = -1,
    right: int = -1,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    rng: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    """out and lse. left, right: -1 is unlimited. rng: i64 (2) in host memory, seed and offset.
    keys: i32 (3, batch), the row of a dense k and v that each sequence reads, its first key and
    the end of its keys."""
    seed, offset = rng.tolist() if rng is not None else (0, 0)
    row, first, end = (None, None, None) if keys is None else keys.unbind(0)
    with torch.no_grad():
        out, lse = attention(
            q,
            k,
            v,
            window=None if left < 0 and right < 0 else (left, right),
            softcap=softcap,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            softmax_scale=softmax_scale,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            block_table=block_table,
            cache_batch_idx=row,
            leftpad_k=first,
            seqused_k=end,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k,
            dropout_p=dropout_p,
            dropout_seed=seed,
            dropout_offset=offset,
            return_lse=True,
        )
    return out, lse


@attention_op.register_fake
def _(q, k, v, cu_seqlens_q=None, *rest):  # type: ignore[no-untyped-def]
    rows = (
        (q.shape[1], q.shape[0])
        if cu_seqlens_q is not None
        else (q.shape[0], q.shape[2], q.shape[1])
    )
    return q.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(rows, dtype=torch.float32)


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, dropout_p: float = 0.0, **options: Any
) -> tuple[Tensor, Tensor]:
    """attention_op for any head_dim and any strides, with dropout by torch's seed."""
    out, lse = attention_op(
        *map(padded, (q, k, v)), dropout_p=dropout_p, rng=new_rng(dropout_p), **options
    )
    return out[..., : v.shape[-1]], lse


@torch.library.custom_op("tallow::attention_backward", mutates_args=())
def attention_backward_op(
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    keys: Optional[Tensor],
    alibi_slopes: Optional[Tensor],
    softmax_scale: float,
    left: int,
    right: int,
    softcap: float,
    dropout_p: float,
    rng: Optional[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v)]
    dq, dk, dv = grads
    heads, heads_kv = q.shape[-2], k.shape[-2]
    group = heads // heads_kv
    seeds = rng.tolist() if rng is not None else ()
    for b, rows, at in _sequences(q, k, cu_seqlens_q, cu_seqlens_k, keys):
        delta = (dout[rows].float() * out[rows].float()).sum(-1).T - _lse_of(dlse, b, rows)
        for g in range(heads_kv):
            hs = slice(g * group, (g + 1) * group)
            qg, kg, vg = q[rows][:, hs], k[at][:, g], v[at][:, g]
            scores, slope = _group_scores(
                qg, kg, _slopes_of(alibi_slopes, b, hs), softmax_scale, left, right, softcap
            )
            row_lse = _lse_of(lse, b, rows)[hs, :, None]
            p = torch.where(scores == -math.inf, 0.0, torch.exp(scores - row_lse))
            do = dout[rows][:, hs].float()
            dp = torch.einsum("ihd,jd->hij", do, vg.float())
            weight = p
            if rng is not None:
                sq, sk = scores.shape[1:]
                kept = [
                    philox_keep(seeds, b * heads + h, sq, sk, dropout_p, q.device)
                    for h in range(hs.start, hs.stop)
                ]
                keep = torch.stack(kept) / (1 - dropout_p)
                weight, dp = p * keep, dp * keep
            ds = p * (dp - delta[hs, :, None]) * slope * softmax_scale
            dq[rows][:, hs] += torch.einsum("hij,jd->ihd", ds, kg.float())
            dk[at][:, g] += torch.einsum("hij,ihd->jd", ds, qg.float())
            dv[at][:, g] += torch.einsum("hij,ihd->jd", weight, do)
    return grads[0].to(q.dtype), grads[1].to(k.dtype), grads[2].to(v.dtype)


@attention_backward_op.register_fake
def _(dout, dlse, q, k, v, *rest):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, cu_q, cu_k, _, _, block_table, keys, alibi_slopes, sinks, *options, rng = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k, keys, alibi_slopes, rng)
    ctx.options = options
    ctx.refused = None
    if block_table is not None:
        ctx.refused = "block_table"
    elif sinks is not None and sinks.requires_grad:
        ctx.refused = "sinks that require grad"


def _backward(ctx, dout, dlse):  # type: ignore[no-untyped-def]
    if ctx.refused:
        raise NotImplementedError(f"{ctx.refused}: attention has no backward pass with them")
    *tensors, rng = ctx.saved_tensors
    grads = attention_backward_op(dout, dlse, *tensors, *ctx.options, rng)
    return (*grads, *(None,) * 14)


attention_op.register_autograd(_backward, setup_context=_save)


def dropped_weights(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    max_seqlen_q: int,
    max_seqlen_k: int,
    alibi_slopes: Optional[Tensor],
    softmax_scale: float,
    left: int,
    right: int,
    softcap: float,
    dropout_p: float,
    rng: Tensor,
) -> Tensor:
    """exp(score - the row's largest score), negative where dropout drops it:
    (batch, heads, seqlen_q, seqlen_k), both lengths rounded up to 128. For tests of dropout."""
    heads, heads_kv = q.shape[-2], k.shape[-2]
    group = heads // heads_kv
    batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    rounded = [-(-n // 128) * 128 for n in (max_seqlen_q, max_seqlen_k)]
    found = q.new_zeros((batch, heads, *rounded))
    for b, rows, at in _sequences(q, k, cu_seqlens_q, cu_seqlens_k, None):
        for h in range(heads):
            hs = slice(h, h + 1)
            scores, _ = _group_scores(
                q[rows][:, hs],
                k[at][:, h // group],
                _slopes_of(alibi_slopes, b, hs),
                softmax_scale,
                left,
                right,
                softcap,
            )
            top = scores[0].amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
            sq, sk = scores.shape[1:]
            keep = philox_keep(rng.tolist(), b * heads + h, sq, sk, dropout_p, q.device)
            weight = torch.exp(scores[0] - top)
            found[b, h, :sq, :sk] = torch.where(keep, weight, -weight).to(q.dtype)
    return found


# --------------------------------------------------------------------------------------------
# Attention with a cache
# --------------------------------------------------------------------------------------------


@torch.library.custom_op("tallow::attention_with_cache", mutates_args=("k_cache", "v_cache"))
def attention_with_cache_op(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Optional[Tensor],
    v: Optional[Tensor],
    rotary_cos: Optional[Tensor],
    rotary_sin: Optional[Tensor],
    rotary_interleaved: bool,
    positions_q: Optional[Tensor],
    cache_seqlens: Optional[Tensor],
    cache_batch_idx: Optional[Tensor],
    cache_leftpad: Optional[Tensor],
    block_table: Optional[Tensor],
    alibi_slopes: Optional[Tensor],
    softmax_scale: float,
    left: int,
    right: int,
    softcap: float,
    num_splits: int,
) -> tuple[Tensor, Tensor]:
    rotary = None
    if rotary_cos is not None:
        rotary = Rotary(
            rotary_dim=2 * rotary_cos.shape[-1],
            cos=rotary_cos,
            sin=rotary_sin,
            pairing="interleaved" if rotary_interleaved else "half",
        )
    with torch.no_grad():
        out, lse = attention(
            q,
            k_cache,
            v_cache,
            k_new=k,
            v_new=v,
            rotary=rotary,
            positions_q=positions_q,
            seqused_k=cache_seqlens,
            cache_batch_idx=cache_batch_idx,
            leftpad_k=cache_leftpad,
            block_table=block_table,
            alibi_slopes=alibi_slopes,
            softmax_scale=softmax_scale,
            window=None if left < 0 and right < 0 else (left, right),
            softcap=softcap,
            num_splits=num_splits,
            return_lse=True,
        )
    return out, lse


@attention_with_cache_op.register_fake
def _(q, k_cache, v_cache, *rest):  # type: ignore[no-untyped-def]
    return (
        q.new_empty((*q.shape[:-1], v_cache.shape[-1])),
        q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32),
    )


# --------------------------------------------------------------------------------------------
# Rotary
# --------------------------------------------------------------------------------------------


@torch.library.custom_op("tallow::rotary_tables", mutates_args=())
def rotary_op(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    offset: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
) -> Tensor:
    angles = Rotary(
        rotary_dim=2 * cos.shape[-1],
        cos=cos,
        sin=sin,
        pairing="interleaved" if interleaved else "half",
    )
    with torch.no_grad():
        rotated: Tensor = rotate(x, angles, offset=offset, cu_seqlens=cu_seqlens)
    return rotated


@rotary_op.register_fake
def _(x, *rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_rotary(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, cos, sin, ctx.interleaved, offset, cu_seqlens = inputs
    ctx.save_for_backward(cos, sin, offset, cu_seqlens)


def _rotary_backward(ctx, dout):  # type: ignore[no-untyped-def]
    """A rotation's transpose turns the other way."""
    cos, sin, offset, cu_seqlens = ctx.saved_tensors
    dx = rotary_op(dout.contiguous(), cos, -sin, ctx.interleaved, offset, cu_seqlens)
    return dx, None, None, None, None, None


rotary_op.register_autograd(_rotary_backward, setup_context=_save_rotary)
