"""The functions of flash-attn 2.8.3, with its signatures and semantics, computed by Tallow.

Where flash-attn differs from tallow.attention, these functions do as flash-attn does:
  - -1 (any negative number) in window_size is unlimited; `causal` sets its right side to 0.
  - softmax_lse is +inf on rows without a visible key, and with `causal` and alibi_slopes it is
    larger by slope * (i + seqlen_k - seqlen_q), as flash-attn adds slope * j to the scores there.
  - head_dim is padded to a multiple of 8; a padded cache is written back.
  - flash_attn_with_kvcache without `causal` and window rotates every query at cache_seqlens.
  - q, k and v whose last dimension is not contiguous are copied.
More is accepted than there: f32, any page size, head_dim 512 and 576, the CPU.

The backward pass is not a kernel: it is recomputed with PyTorch operations (see _torch_ops), exact
but without flash-attn's speed and memory. Dropout follows torch's seed, with Tallow's own
generator: other weights are dropped than flash-attn would drop.
"""

from __future__ import annotations

import sys
from typing import Any, Optional, Union

import torch
from torch import Tensor

from . import _torch_ops as ops

# ruff: noqa: UP007, UP045 - the signatures are flash-attn's

__version__ = "2.8.3"

# --------------------------------------------------------------------------------------------
# Arguments, as flash-attn understands them
# --------------------------------------------------------------------------------------------


def _window(window_size: Any, causal: bool, seqlen_k: int) -> tuple[int, int]:
    """(left, right), -1 where unlimited; sides may be 0-d tensors."""
    left, right = (-1 if side < 0 or side >= seqlen_k else side for side in map(int, window_size))
    return left, 0 if causal else right


def _flash_lse(
    lse: Tensor, sides: tuple[int, int], alibi_slopes: Optional[Tensor], position: Any
) -> Tensor:
    """Tallow's lse as flash-attn reports it; position() is i + seqlen_k - seqlen_q, shaped like
    lse without its heads."""
    if alibi_slopes is not None and sides == (-1, 0):
        slopes = alibi_slopes.float()
        if lse.dim() == 3:
            lse = lse + slopes.view(-1, lse.shape[1], 1) * position()[:, None]
        else:
            rows, sequence = position()
            slopes = slopes[:, None] if slopes.dim() == 1 else slopes[sequence].T
            lse = lse + slopes * rows
    return torch.where(lse == -torch.inf, torch.inf, lse)


def _packed_position(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, total: int) -> Any:
    """(i + seqlen_k - seqlen_q, sequence) of every packed row."""
    rows = torch.arange(total, device=cu_seqlens_q.device, dtype=cu_seqlens_q.dtype)
    sequence = torch.searchsorted(cu_seqlens_q, rows, right=True) - 1
    return rows - cu_seqlens_q[sequence + 1] + cu_seqlens_k.diff()[sequence], sequence


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: tuple[Optional[Tensor], Optional[Tensor]],
    lengths: tuple[int, int],
    dropout_p: float,
    softmax_scale: Optional[float],
    causal: bool,
    window_size: Any,
    softcap: float,
    alibi_slopes: Optional[Tensor],
    return_attn_probs: bool,
    block_table: Optional[Tensor] = None,
) -> Any:
    head_dim, head_dim_v = q.shape[-1], v.shape[-1]
    scale = head_dim**-0.5 if softmax_scale is None else float(softmax_scale)
    sides = _window(window_size, causal, lengths[1])
    q, k, v = map(ops.padded, (q, k, v))
    rng = ops.new_rng(dropout_p)
    out, lse = ops.attention_op(
        q, k, v, *starts, *lengths, block_table, None, alibi_slopes, None, scale, *sides, softcap,
        dropout_p, rng)  # fmt: skip
    out = out[..., :head_dim_v]
    if not return_attn_probs:
        return out

    def position() -> Any:
        if starts[0] is not None and starts[1] is not None:
            return _packed_position(starts[0], starts[1], q.shape[0])
        return torch.arange(lengths[0], device=q.device)[None] + lengths[1] - lengths[0]

    probs = q.new_empty(0)
    if rng is not None:
        with torch.no_grad():
            probs = ops.dropped_weights(
                q, k, *starts, *lengths, alibi_slopes, scale, *sides, softcap, dropout_p, rng
            )
    return out, _flash_lse(lse, sides, alibi_slopes, position), probs


# --------------------------------------------------------------------------------------------
# The functions. `deterministic` changes nothing: results are always repeatable.
# --------------------------------------------------------------------------------------------


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of q (batch, seqlen_q, heads, head_dim) over k, v (batch, seqlen_k, heads_kv, ...).

    Returns out (batch, seqlen_q, heads, head_dim_v); with return_attn_probs also softmax_lse, f32
    (batch, heads, seqlen_q), and, when dropout_p > 0, the weights exp(score - row maximum) with the
    dropped ones negative, (batch, heads, seqlen_q, seqlen_k) rounded up to 128; else an empty
    tensor. Raises ValueError, TypeError and tallow.Error like tallow.attention."""
    return _attention(
        q,
        k,
        v,
        (None, None),
        (q.shape[1], k.shape[1]),
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        return_attn_probs,
    )


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash_attn_func with k and v in one tensor, (batch, seqlen_k, 2, heads_kv, head_dim)."""
    k, v = kv.unbind(2)
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash_attn_func with q, k and v in one tensor, (batch, seqlen, 3, heads, head_dim)."""
    q, k, v = qkv.unbind(2)
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Optional[Tensor] = None,
) -> Any:
    """Attention of packed sequences: q (total_q, heads, head_dim), k and v (total_k, heads_kv, ...)
    or, with block_table i32 (batch, columns), pages (pages, page_size, heads_kv, ...).

    cu_seqlens_q, cu_seqlens_k: i32 (batch + 1), first rows of the sequences. max_seqlen_q,
    max_seqlen_k: no sequence is longer. Returns what flash_attn_func does, with out
    (total_q, heads, head_dim_v) and softmax_lse (heads, total_q). No backward with block_table."""
    return _attention(
        q,
        k,
        v,
        (cu_seqlens_q, cu_seqlens_k),
        (int(max_seqlen_q), int(max_seqlen_k)),
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        return_attn_probs,
        block_table,
    )


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash_attn_varlen_func with k and v in one tensor, (total_k, 2, heads_kv, head_dim)."""
    k, v = kv.unbind(1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash_attn_varlen_func with q, k and v in one tensor, (total, 3, heads, head_dim)."""
    q, k, v = qkv.unbind(1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def _cache_lengths(
    cache_seqlens: Optional[Union[int, Tensor]], batch: int, device: torch.device
) -> Optional[Tensor]:
    if isinstance(cache_seqlens, int):
        return torch.full((batch,), cache_seqlens, dtype=torch.int32, device=device)
    return cache_seqlens


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Optional[Tensor] = None,
    v: Optional[Tensor] = None,
    rotary_cos: Optional[Tensor] = None,
    rotary_sin: Optional[Tensor] = None,
    cache_seqlens: Optional[Union[(int, Tensor)]] = None,
    cache_batch_idx: Optional[Tensor] = None,
    cache_leftpad: Optional[Tensor] = None,
    block_table: Optional[Tensor] = None,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Optional[Tensor] = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """Attention of q (batch, seqlen_q, heads, head_dim) over a cache, after k and v
    (batch, seqlen_new, heads_kv, head_dim), when given, are written into it at cache_seqlens.

    k_cache, v_cache: (batch or more, rows, heads_kv, head_dim), or pages with block_table; written
    in place. rotary_cos, rotary_sin (positions, rotary_dim/2) rotate q and k at cache_seqlens + t.
    cache_seqlens: an int or i32 (batch), keys in the cache before the call; None: all its rows.
    cache_batch_idx: i32 (batch), the cache's rows. cache_leftpad: i32 (batch), first valid key.

    Returns out, and with return_softmax_lse also softmax_lse, f32 (batch, heads, seqlen_q). No
    backward. Raises like tallow.attention."""
    head_dim, head_dim_v, seqlen_q = q.shape[-1], v_cache.shape[-1], q.shape[1]
    scale = head_dim**-0.5 if softmax_scale is None else float(softmax_scale)
    rows = k_cache.shape[1] * (block_table.shape[1] if block_table is not None else 1)
    one_query = seqlen_q == 1 and alibi_slopes is None
    sides = _window(window_size, causal and not one_query, rows)
    lengths = _cache_lengths(cache_seqlens, q.shape[0], q.device)
    positions_q = None
    if rotary_cos is not None and lengths is not None and sides == (-1, -1):
        positions_q = lengths[:, None].expand(-1, seqlen_q).contiguous()
    caches = ops.padded(k_cache), ops.padded(v_cache)
    out, lse = ops.attention_with_cache_op(
        ops.padded(q),
        *caches,
        *(x if x is None else ops.padded(x) for x in (k, v)),
        rotary_cos,
        rotary_sin,
        rotary_interleaved,
        positions_q,
        lengths,
        cache_batch_idx,
        cache_leftpad,
        block_table,
        alibi_slopes,
        scale,
        *sides,
        softcap,
        num_splits,
    )
    if k is not None:
        for cache, wide in zip((k_cache, v_cache), caches):
            if wide is not cache:
                cache.copy_(wide[..., : cache.shape[-1]])
    out = out[..., :head_dim_v]
    if not return_softmax_lse:
        return out

    def position() -> Tensor:
        used = torch.full((q.shape[0],), rows, device=q.device) if lengths is None else lengths
        used = used if cache_leftpad is None else used - cache_leftpad
        new = 0 if k is None else k.shape[1]
        return torch.arange(seqlen_q, device=q.device) + (used + new - seqlen_q)[:, None]

    return out, _flash_lse(lse, sides, alibi_slopes, position)


def install() -> None:
    """Makes `import flash_attn` resolve to this module, with flash_attn.bert_padding and
    flash_attn.layers.rotary. Call it before anything imports or looks for flash_attn; raises
    RuntimeError when another flash_attn is imported already."""
    from . import _flash_install

    _flash_install.install(sys.modules[__name__])
