"""What flash_attn.bert_padding offers: packing padded batches and back."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

# ruff: noqa: UP045 - the signatures are flash-attn's


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` of input (rows, ...); differentiable."""
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """Zeros (first_axis_dim, ...) with `values` at rows `indices`; differentiable."""
    zeros = values.new_zeros((first_axis_dim, *values.shape[1:]))
    return zeros.index_copy(0, indices, values)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Optional[Tensor] = None
) -> tuple[Any, ...]:
    """Packs the tokens of hidden_states (batch, seqlen, ...) that attention_mask (batch, seqlen),
    or unused_mask, marks.

    Returns the packed tokens, their indices in batch * seqlen, cu_seqlens i32 (batch + 1), the
    longest length as an int, and the lengths by attention_mask alone, i32 (batch)."""
    mask = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = mask.sum(-1, dtype=torch.int32)
    indices = mask.flatten().nonzero().flatten()
    starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    packed = index_first_axis(hidden_states.flatten(0, 1), indices)
    used = attention_mask.sum(-1, dtype=torch.int32)
    return packed, indices, starts, int(lengths.max()), used


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """The inverse: tokens back to (batch, seqlen, ...), zeros where there is none."""
    return index_put_first_axis(hidden_states, indices, batch * seqlen).unflatten(
        0, (batch, seqlen)
    )
