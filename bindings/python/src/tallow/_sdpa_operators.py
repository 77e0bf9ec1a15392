"""Tallow as PyTorch's flash attention operators, for tallow.sdpa.register().

Forward and backward operators stand below autograd and torch.compile, which see PyTorch's own.
Results are laid out in memory as PyTorch promises. Arguments that Tallow cannot honour are errors;
nothing falls back.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from . import _row_masks, sdpa
from . import _torch_ops as ops

# ruff: noqa: UP045


def _refuse(dropout_p: float, return_debug_mask: bool = False) -> None:
    if dropout_p:
        raise ValueError(f"dropout_p = {dropout_p}: must be 0; tallow.sdpa.replaced() takes others")
    if return_debug_mask:
        raise ValueError("return_debug_mask is True: must be False, as tallow forms no weights")


def _like(model: Tensor, x: Tensor) -> Tensor:
    """x with the strides of torch.empty_like(model)."""
    if x.shape != model.shape:
        return x
    wanted = torch.empty_like(model)
    return x if x.stride() == wanted.stride() else wanted.copy_(x)


def _with_state(out: Tensor, lse: Tensor, *sizes: Any) -> Any:
    """The results of a forward operator; without dropout there is no state of a generator."""
    state = torch.zeros(2, dtype=torch.uint64, device=out.device)
    unused = torch.zeros((), dtype=torch.uint64, device=out.device)
    return out, lse.contiguous(), *sizes, state, unused, out.new_empty(0)


def _gradients(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Optional[Tensor],
    is_causal: bool,
    scale: Optional[float],
) -> tuple[Tensor, ...]:
    """Of sdpa._attend; laid out (batch, seqlen, heads, head_dim)."""
    do, q, k, v, o = (x.transpose(1, 2) for x in (grad_out, query, key, value, out))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    batch, seqlen_q, seqlen_k = q.shape[0], q.shape[1], k.shape[1]
    if mask is None:
        extra = max(seqlen_k - seqlen_q, 0) if is_causal else 0  # keys that no query sees
        seen = (x[:, : seqlen_k - extra] for x in (k, v))
        right = max(seqlen_q - seqlen_k, 0) if is_causal else -1
        dq, dk, dv = ops.attention_backward_op(
            do, torch.zeros_like(lse), q, *seen, o, lse, None, None, None, None, scale, -1, right,
            0.0, 0.0, None)  # fmt: skip
        found = [dq, *(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, extra)) for x in (dk, dv))]
    else:
        rows = _row_masks.intervals(
            _row_masks.visible_part(mask.expand(*mask.shape[:-2], seqlen_q, seqlen_k)))  # fmt: skip
        do, packed, o = (x.flatten(0, 1) for x in (do, q, o))
        lse = lse.transpose(0, 1).flatten(1, 2)
        found = [torch.zeros_like(packed), torch.zeros_like(k), torch.zeros_like(v)]
        for r in _row_masks.runs(rows.expand(batch, -1, -1, -1)):
            more = ops.attention_backward_op(
                do, torch.zeros_like(lse), packed, k, v, o, lse, r.cu_seqlens_q, None, r.keys,
                None, scale, r.left, r.right, 0.0, 0.0, None)  # fmt: skip
            found = [a + b for a, b in zip(found, more)]
        found[0] = found[0].unflatten(0, (batch, seqlen_q))
    return tuple(x.contiguous().transpose(1, 2) for x in found)


def _scaled_dot_product_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: Optional[float] = None,
) -> Any:
    _refuse(dropout_p, return_debug_mask)
    out, lse = sdpa._attend(query, key, value, None, 0.0, is_causal, scale)
    return _with_state(_like(query, out), lse, None, None, query.shape[2], key.shape[2])


def _scaled_dot_product_flash_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Optional[Tensor],
    cum_seq_k: Optional[Tensor],
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Tensor,
    philox_offset: Tensor,
    *,
    scale: Optional[float] = None,
) -> tuple[Tensor, ...]:
    _refuse(dropout_p)
    found = _gradients(grad_out, query, key, value, out, logsumexp, None, is_causal, scale)
    return tuple(map(_like, (query, key, value), found))


def _scaled_dot_product_flash_attention_for_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Optional[Tensor] = None,
    scale: Optional[float] = None,
) -> tuple[Tensor, Tensor]:
    _refuse(dropout_p)
    out, lse = sdpa._attend(query, key, value, attn_mask, 0.0, is_causal, scale)
    return _like(query, out), lse.transpose(1, 2).contiguous().transpose(1, 2)


def _scaled_dot_product_flash_attention_for_cpu_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Optional[Tensor] = None,
    scale: Optional[float] = None,
) -> tuple[Tensor, ...]:
    _refuse(dropout_p)
    return _gradients(grad_out, query, key, value, out, logsumexp, attn_mask, is_causal, scale)


def _sides(left: Optional[int], right: Optional[int], is_causal: bool) -> tuple[int, int]:
    left, right = (-1 if side is None or side < 0 else side for side in (left, right))
    return left, 0 if is_causal else right


def _flash_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Optional[Tensor],
    cum_seq_k: Optional[Tensor],
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: Optional[float] = None,
    window_size_left: Optional[int] = None,
    window_size_right: Optional[int] = None,
    seqused_k: Optional[Tensor] = None,
    alibi_slopes: Optional[Tensor] = None,
) -> Any:
    """Heads second to last; packed with cum_seq_q and cum_seq_k. Aligned to the bottom right."""
    _refuse(dropout_p, return_debug_mask)
    if seqused_k is not None:
        raise ValueError("seqused_k is given: must be absent, as packed keys are all in use")
    left, right = _sides(window_size_left, window_size_right, is_causal)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, lse = ops.attend(
        query, key, value, cu_seqlens_q=cum_seq_q, cu_seqlens_k=cum_seq_k,
        max_seqlen_q=max_q if cum_seq_q is not None else 0,
        max_seqlen_k=max_k if cum_seq_k is not None else 0,
        alibi_slopes=alibi_slopes, softmax_scale=scale, left=left, right=right)  # fmt: skip
    return _with_state(_like(query, out), lse)


def _flash_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Optional[Tensor],
    cum_seq_k: Optional[Tensor],
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: Optional[float] = None,
    window_size_left: Optional[int] = None,
    window_size_right: Optional[int] = None,
) -> Any:
    _refuse(dropout_p)
    left, right = _sides(window_size_left, window_size_right, is_causal)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return ops.attention_backward_op(
        grad_out, torch.zeros_like(logsumexp), query, key, value, out, logsumexp, cum_seq_q,
        cum_seq_k, None, None, scale, left, right, 0.0, 0.0, None)  # fmt: skip


_EVERYWHERE = (
    _scaled_dot_product_flash_attention,
    _scaled_dot_product_flash_attention_backward,
    _flash_attention_forward,
    _flash_attention_backward,
)
_ON_CPU = (
    _scaled_dot_product_flash_attention_for_cpu,
    _scaled_dot_product_flash_attention_for_cpu_backward,
)


class Override:
    """Puts the operators in place, until `remove`."""

    def __init__(self) -> None:
        self.library = torch.library.Library("aten", "IMPL")
        for key, functions in (("CPU", _EVERYWHERE + _ON_CPU), ("CUDA", _EVERYWHERE)):
            for function in functions:
                self.library.impl(function.__name__, function, key, allow_override=True)

    def remove(self) -> None:
        self.library._destroy()
