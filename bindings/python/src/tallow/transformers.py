"""`import tallow.transformers`, then attn_implementation="tallow", in any transformers model.

Masks are computed by transformers' own rules and honoured exactly: causal, sliding window, chunked,
padding on either side, packed position_ids, two-way blocks, caches of any kind, custom 4-d masks.
One that shows a query anything but an interval of keys, position biases and attention weights as
output are refused with ValueError. Rows that see no key give 0.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from . import _row_masks
from . import _torch_ops as ops

try:
    from transformers import AttentionInterface, masking_utils
except ImportError as error:
    raise ImportError("tallow.transformers needs transformers 4.53 or later") from error

# ruff: noqa: UP045

_ROWS_AT_ONCE = 1 << 24  # entries of the mask that are made at a time

_REFUSED = {
    "position_bias": "tallow adds no bias to the scores",
    "head_mask": "tallow weighs no heads",
    "output_attentions": "tallow never forms the weights",
    "cache": "tallow reads no paged cache of transformers",
}


@torch.compiler.disable
def _is_whole(mask: Tensor) -> bool:
    return bool(mask.all())


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = masking_utils.causal_mask_function,
    attention_mask: Optional[Tensor] = None,
    **options: Any,
) -> Optional[Tensor]:
    """transformers' mask interface: None for a plain causal mask, else the intervals of
    tallow._row_masks, found block by block of rows."""
    plain = mask_function is masking_utils.causal_mask_function and kv_offset == 0
    plain = plain and int(q_offset) + q_length == kv_length
    if plain and (attention_mask is None or _is_whole(attention_mask)):
        return None
    options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    step = max(1, _ROWS_AT_ONCE // max(1, batch_size * kv_length))
    blocks = [
        _row_masks.intervals(
            masking_utils.sdpa_mask(
                batch_size=batch_size, q_length=min(step, q_length - row), kv_length=kv_length,
                q_offset=q_offset + row, kv_offset=kv_offset, mask_function=mask_function,
                attention_mask=attention_mask, **options))
        for row in range(0, q_length, step)
    ]  # fmt: skip
    return torch.cat(blocks, 2)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Optional[Tensor],
    dropout: float = 0.0,
    scaling: Optional[float] = None,
    sliding_window: Optional[int] = None,
    softcap: Optional[float] = None,
    is_causal: Optional[bool] = None,
    s_aux: Optional[Tensor] = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query (batch, heads, seqlen_q, head_dim), key and value
    (batch, heads_kv, seqlen_k, ...). Returns (batch, seqlen_q, heads, head_dim_v) and None."""
    for name, why in _REFUSED.items():
        if kwargs.get(name) is not None and kwargs[name] is not False:
            raise ValueError(f"{name} is given: {why}; use eager or sdpa")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    options: dict[str, Any] = {
        "softmax_scale": query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        "softcap": softcap or 0.0,
        "sinks": s_aux.float() if s_aux is not None else None,
        "dropout_p": dropout,
    }
    if attention_mask is not None:
        rows = attention_mask
        if rows.dtype != torch.int32:
            rows = _row_masks.intervals(_row_masks.visible_part(rows[..., : k.shape[1]]))
        return _row_masks.attend(q, k, v, rows, **options)[0], None
    options["left"] = sliding_window - 1 if sliding_window and causal else -1
    options["right"] = 0 if causal else -1
    if kwargs.get("cu_seq_lens_q") is None:
        return ops.attend(q, k, v, **options)[0], None
    for side in "qk":  # sequences side by side in a batch of one
        options[f"cu_seqlens_{side}"] = kwargs[f"cu_seq_lens_{side}"].to(torch.int32)
        options[f"max_seqlen_{side}"] = int(kwargs.get(f"max_length_{side}") or 0)
    return ops.attend(*(x.flatten(0, 1) for x in (q, k, v)), **options)[0][None], None


AttentionInterface.register("tallow", attention_forward)
masking_utils.AttentionMaskInterface.register("tallow", attention_mask)
