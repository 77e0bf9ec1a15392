"""What flash_attn.layers.rotary offers: rotary embedding from tables."""

from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from ._torch_ops import rotary_op

# ruff: noqa: UP007, UP045 - the signatures are flash-attn's


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: Union[int, Tensor] = 0,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
) -> Tensor:
    """Rotates x (batch, seqlen, heads, head_dim), or packed (total, heads, head_dim) with
    cu_seqlens, by tables cos and sin (positions, rotary_dim/2); elements beyond rotary_dim pass.

    seqlen_offsets: position of every sequence's first token, an int or (batch). inplace: x is
    written and returned. max_seqlen is not needed. Differentiable in x."""
    batch = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if isinstance(seqlen_offsets, int):
        offset = torch.full((batch,), seqlen_offsets, dtype=torch.int32, device=x.device)
    else:
        offset = seqlen_offsets.to(torch.int32)
    rows = x if x.stride(-1) == 1 else x.contiguous()
    out: Tensor = rotary_op(
        rows, cos.contiguous(), sin.contiguous(), interleaved, offset, cu_seqlens
    )
    return x.copy_(out) if inplace else out


apply_rotary_emb_func = apply_rotary_emb
