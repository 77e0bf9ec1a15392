"""PyTorch's scaled_dot_product_attention, computed by Tallow: while a context is open,

with tallow.sdpa.replaced():
    model(...)

or, where torch.nn.attention has a registry of flash attentions (PyTorch 2.11), from then on
wherever PyTorch chooses its flash backend, and in torch.nn.attention.varlen.varlen_attn:

tallow.sdpa.register()
torch.nn.attention.activate_flash_attention_impl("tallow")
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import Tensor

from . import _row_masks
from . import _torch_ops as ops

# ruff: noqa: UP045 - as torch writes them


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Optional[Tensor],
    dropout_p: float,
    is_causal: bool,
    scale: Optional[float],
) -> tuple[Tensor, Tensor]:
    """Arrays of four dimensions, heads second, and a mask (batch or 1, heads or 1, seqlen_q or 1,
    seqlen_k or 1). Returns out, and lse (batch, heads, seqlen_q)."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    options: dict[str, Any] = {"softmax_scale": scale, "dropout_p": dropout_p}
    if mask is not None:
        rows = mask.expand(*mask.shape[:-2], q.shape[1], k.shape[1])
        found = _row_masks.intervals(_row_masks.visible_part(rows))
        out, lse = _row_masks.attend(q, k, v, found, **options)
    elif is_causal:  # aligned to the top left: query i sees keys j <= i
        seqlen_q, seqlen_k = q.shape[1], k.shape[1]
        right = max(seqlen_q - seqlen_k, 0)
        out, lse = ops.attend(q, k[:, :seqlen_q], v[:, :seqlen_q], right=right, **options)
    else:
        out, lse = ops.attend(q, k, v, **options)
    return out.transpose(1, 2), lse


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
    q, k, v = (x.reshape(-1, *((1,) * (3 - x.dim()) + x.shape)[-3:]) for x in (query, key, value))
    if attn_mask is not None and attn_mask.dim() > 3:
        heads = attn_mask.shape[-3]
        attn_mask = attn_mask.expand(*outer, heads, *attn_mask.shape[-2:]).flatten(0, -4)
    out, _ = _attend(q, k, v, attn_mask, dropout_p, is_causal, scale)
    return out.reshape(*query.shape[:-1], value.shape[-1])


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


def register() -> None:
    """Makes "tallow" known to torch.nn.attention.activate_flash_attention_impl, which puts Tallow
    in place of PyTorch's flash attention, on CUDA and on the CPU, with gradients, until
    torch.nn.attention.restore_flash_attention_impl. Dropout is refused there.

    Raises RuntimeError where PyTorch is too old."""
    if not hasattr(torch.nn.attention, "restore_flash_attention_impl"):
        raise RuntimeError(
            f"PyTorch {torch.__version__} has no registry of flash attentions: needs 2.11 or "
            "later; tallow.sdpa.replaced() works with any"
        )
    from . import _sdpa_operators

    torch.nn.attention.register_flash_attention_impl("tallow", register_fn=_sdpa_operators.Override)
