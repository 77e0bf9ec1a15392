"""PyTorch's scaled_dot_product_attention, computed by Tallow while a context is open:

with tallow.sdpa.replaced():
    model(...)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor

from . import _row_masks
from . import _torch_ops as ops

# ruff: noqa: UP045 - as torch writes them


def _dense(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float, dropout_p: float
) -> Tensor:
    """torch's causal mask is aligned to the top left: query i sees keys j <= i."""
    seqlen_q, seqlen_k = q.shape[1], k.shape[1]
    right = -1
    if is_causal:
        k, v = k[:, :seqlen_q], v[:, :seqlen_q]
        right = max(seqlen_q - seqlen_k, 0)
    out, _ = ops.attention_op(
        q,
        k,
        v,
        None,
        None,
        0,
        0,
        None,
        None,
        None,
        None,
        scale,
        -1,
        right,
        0.0,
        dropout_p,
        ops.new_rng(dropout_p),
    )
    return out


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention: query (..., heads, seqlen_q, head_dim), key
    and value (..., heads_kv, seqlen_k, ...); the same arguments and mask alignment. Rows that see
    no key give 0.

    Raises ValueError for what Tallow cannot honour: a mask that shows a query anything but an
    interval of keys, differs between heads, or is a bias other than 0 and -inf."""
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask is given: must be absent, as is_causal is True")
    if query.dim() < 2 or not query.dim() == key.dim() == value.dim():
        raise ValueError(
            f"query, key, value have {query.dim()}, {key.dim()}, {value.dim()} "
            "dimensions; must be the same number, at least 2"
        )
    if query.dim() > 2 and query.shape[-3] != key.shape[-3] and not enable_gqa:
        raise ValueError(
            f"key has {key.shape[-3]} heads, query {query.shape[-3]}: enable_gqa must be True"
        )
    outer = query.shape[:-3]
    q, k, v = (
        x.reshape(-1, *((1,) * (3 - x.dim()) + x.shape)[-3:]).transpose(1, 2)
        for x in (query, key, value)
    )
    head_dim_v = v.shape[-1]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = map(ops.padded, (q, k, v))
    if attn_mask is None:
        out = _dense(q, k, v, is_causal, scale, dropout_p)
    else:
        if attn_mask.dim() > 3:
            heads = attn_mask.shape[-3]
            attn_mask = attn_mask.expand(*outer, heads, *attn_mask.shape[-2:]).flatten(0, -4)
        rows = attn_mask.expand(*attn_mask.shape[:-2], q.shape[1], k.shape[1])
        visible = _row_masks.visible_part(rows)
        out = _row_masks.attend(q, k, v, _row_masks.intervals(visible), scale, dropout_p=dropout_p)
    out = out[..., :head_dim_v].transpose(1, 2)
    return out.reshape(*query.shape[:-1], head_dim_v)


@contextlib.contextmanager
def replaced() -> Iterator[None]:
    """While open, torch.nn.functional.scaled_dot_product_attention is this module's, for every
    thread and for whatever looks the function up there."""
    functional = torch.nn.functional
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = scaled_dot_product_attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before
