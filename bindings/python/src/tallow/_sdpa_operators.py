"""Tallow as PyTorch's flash attention operators, for tallow.sdpa.register().

The forward operators are overridden above autograd as well as below it: gradients are those of the
operators they call, so PyTorch's own backward operators are not reached. Arguments that Tallow
cannot honour are errors; nothing falls back.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from . import _torch_ops as ops
from . import sdpa

# ruff: noqa: UP045


def _with_state(out: Tensor, lse: Tensor, *sizes: Any) -> Any:
    """The results of a forward operator: the state of a generator, which Tallow leaves alone, and
    the weights, which it never forms, are empty."""
    state = torch.zeros(2, dtype=torch.uint64, device=out.device)
    unused = torch.zeros((), dtype=torch.uint64, device=out.device)
    return out, lse, *sizes, state, unused, out.new_empty(0)


def _no_weights(return_debug_mask: bool) -> None:
    if return_debug_mask:
        raise ValueError("return_debug_mask is True: must be False, as tallow forms no weights")


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
    _no_weights(return_debug_mask)
    out, lse = sdpa._attend(query, key, value, None, dropout_p, is_causal, scale)
    return _with_state(out, lse, None, None, query.shape[2], key.shape[2])


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
    return sdpa._attend(query, key, value, attn_mask, dropout_p, is_causal, scale)


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
    _no_weights(return_debug_mask)
    if seqused_k is not None:
        raise ValueError("seqused_k is given: must be absent, as packed keys are all in use")
    left, right = _sides(window_size_left, window_size_right, is_causal)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, lse = ops.attend(
        query, key, value, cu_seqlens_q=cum_seq_q, cu_seqlens_k=cum_seq_k,
        max_seqlen_q=max_q if cum_seq_q is not None else 0,
        max_seqlen_k=max_k if cum_seq_k is not None else 0,
        alibi_slopes=alibi_slopes, softmax_scale=scale, left=left, right=right,
        dropout_p=dropout_p)  # fmt: skip
    return _with_state(out, lse)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """For varlen_attn, which calls it itself, and has no dropout."""
    if dropout_p:
        raise ValueError(f"dropout_p = {dropout_p}: must be 0, as rng_state does not say it all")
    left, right = _sides(window_size_left, window_size_right, is_causal)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return ops.attention_backward_op(
        grad_out, torch.zeros_like(logsumexp), query, key, value, out, logsumexp, cum_seq_q,
        cum_seq_k, None, None, scale, left, right, 0.0, 0.0, None)  # fmt: skip


class Override:
    """Puts the operators in place, until `remove`."""

    def __init__(self) -> None:
        self.library = torch.library.Library("aten", "IMPL")
        for function in (
            _scaled_dot_product_flash_attention,
            _flash_attention_forward,
            _flash_attention_backward,
        ):
            for key in ("CPU", "AutogradCPU", "CUDA", "AutogradCUDA"):
                self.library.impl(function.__name__, function, key, allow_override=True)
        for key in ("CPU", "AutogradCPU"):
            self.library.impl(
                "_scaled_dot_product_flash_attention_for_cpu",
                _scaled_dot_product_flash_attention_for_cpu, key, allow_override=True)  # fmt: skip

    def remove(self) -> None:
        self.library._destroy()
