"""tallow.attention and its relatives: signatures, manuals, outputs. The semantics are the C
library's; see tallow.h."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

from . import _arrays, _library
from ._params import Call, give_workspace, make_call
from ._structs import CUDA, AttentionParams, MergeParams, RotaryParams

Array = Any
"""numpy.ndarray, torch.Tensor, cupy.ndarray, jax.Array or any array that speaks DLPack."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    """How a position becomes angles: pair i of a token at position p turns by p * inv_freq[i]
    radians, reduced exactly for every position from 0 to 2^31 - 1.

    rotary_dim: even; elements beyond it pass through. None: head_dim.
    theta: inv_freq[i] = theta^(-2i / rotary_dim). None: 10000.
    inv_freq: f32 (rotary_dim/2), in host memory, radians per position, in place of theta.
    cos, sin: f16, bf16 or f32 tables (max_position, rotary_dim/2), in place of theta.
    attention_factor: multiplies cos and sin (YaRN, LongRoPE). None: 1.
    pairing: "half" turns element i with i + rotary_dim/2 (Llama, Qwen), "interleaved" 2i with
        2i + 1 (GPT-J).
    mrope: "chunked" (Qwen2-VL, Qwen2.5-VL) or "interleaved" (Qwen3-VL): positions have three rows
        (time, height, width), and mrope_sections says how many pairs take each.
    """

    rotary_dim: int | None = None
    theta: float | None = None
    inv_freq: Array | None = None
    cos: Array | None = None
    sin: Array | None = None
    attention_factor: float | None = None
    pairing: Literal["half", "interleaved"] = "half"
    mrope: Literal["none", "chunked", "interleaved"] = "none"
    mrope_sections: tuple[int, int, int] | None = None


def _shape(name: str, array: Array) -> tuple[int, ...]:
    return _arrays.view(name, array).shape


def _rows_shape(
    name: str, array: Array, packed: bool, packed_words: str, words: str
) -> tuple[int, ...]:
    """The shape of an array that others are made after; its rank must be right for that."""
    shape = _shape(name, array)
    if len(shape) != (3 if packed else 4):
        wanted = f"packed ({packed_words})" if packed else f"({words})"
        raise ValueError(f"{name}: {len(shape)} dimensions; must be {wanted}")
    return shape


def _mask(causal: bool, window: tuple[int, int] | None) -> dict[str, Any]:
    if window is None:
        return {"mask": "causal" if causal else "none"}
    if not hasattr(window, "__len__"):
        raise TypeError(f"window: {type(window).__name__}; must be (left, right)")
    if len(window) != 2:
        raise ValueError(f"window: {len(window)} entries; must be (left, right)")
    left, right = window
    if causal and right not in (0, -1):
        raise ValueError(f"window = {tuple(window)}: right must be 0 or -1, as causal is True")
    return {"mask": "window", "window_left": left, "window_right": 0 if causal else right}


def _need_own(names: Mapping[str, Any], wanted: list[str]) -> None:
    """Memory made here belongs to the current stream; another stream may not use it."""
    for name in wanted:
        if names["stream"] is not None and names[name] is None:
            raise ValueError(f"{name} is absent: must be given, as stream is given")


def _attention_call(values: dict[str, Any]) -> Call:
    """From the keywords of `attention`; makes out and lse where they are absent."""
    q, packed = values["q"], values["cu_seqlens_q"] is not None
    return_lse = values.pop("return_lse")
    values |= _mask(values.pop("causal"), values.pop("window"))
    _need_own(values, ["out", "lse"] if return_lse else ["out"])
    shape = _rows_shape(
        "q", q, packed, "total_q, heads, head_dim", "batch, seqlen_q, heads, head_dim"
    )
    written = {name for name in ("out", "lse") if values[name] is not None}
    if values["k_new"] is not None:
        written |= {"k", "v"}
    if isinstance(values["rotary"], Rotary) and values["rotary"].rotary_dim is None:
        values["rotary"] = dataclasses.replace(values["rotary"], rotary_dim=shape[-1])
    if values["out"] is None:
        values["out"] = _arrays.empty(q, (*shape[:-1], *_shape("v", values["v"])[-1:]))
    if values["lse"] is None and return_lse:
        rows = (shape[1], shape[0]) if packed else (shape[0], shape[2], shape[1])
        values["lse"] = _arrays.empty(q, rows, "float32")
    workspace = values.pop("workspace")
    call = make_call(AttentionParams(), values, "q", written)
    give_workspace(call, workspace, values["stream"] is not None)
    return call


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    prefix_ranges: Array | None = None,
    softmax_scale: float | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
    seqused_k: Array | None = None,
    leftpad_k: Array | None = None,
    block_table: Array | None = None,
    cache_batch_idx: Array | None = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    dropout_offset: int = 0,
    k_new: Array | None = None,
    v_new: Array | None = None,
    cu_seqlens_k_new: Array | None = None,
    rotary: Rotary | None = None,
    positions_q: Array | None = None,
    positions_k_new: Array | None = None,
    num_splits: int = 0,
    precision: Literal["default", "fast", "high"] = "default",
    batch_invariant: bool = False,
    threads: int = 0,
    stream: int | None = None,
    pack: str | os.PathLike[str] | None = None,
    workspace: Array | None = None,
    out: Array | None = None,
    lse: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """softmax(scores) v over the visible keys, exactly as tallow_attention in tallow.h.

    All arrays are on one device and passed without a copy; only the last dimension of q, k, v,
    k_new, v_new and out must be contiguous. On CUDA the call runs on the array library's current
    stream and does not wait for it.

    q: (batch, seqlen_q, heads, head_dim), or packed (total_q, heads, head_dim) with cu_seqlens_q;
        f16, bf16 or f32.
    k, v: (batch, seqlen_k, heads_kv, head_dim) and (..., head_dim_v); packed (total_k, ...) with
        cu_seqlens_k; paged (pages, page_size, ...) with block_table. q's dtype. Query head h reads
        key head h // (heads // heads_kv). Written only with k_new.

    Scores, in this order
    softmax_scale: multiplies dot(q_i, k_j). None: 1 / sqrt(head_dim).
    softcap: score = softcap * tanh(score / softcap); 0: off (Gemma 2).
    alibi_slopes: f32 (heads) or (batch, heads); score -= slope * |i + seqlen_k - seqlen_q - j|.
    causal: query i sees keys j <= i + seqlen_k - seqlen_q.
    window: (left, right), both ends included: query i sees keys from i + seqlen_k - seqlen_q - left
        to i + seqlen_k - seqlen_q + right; -1: unlimited. A model's "window of W tokens" is
        (W - 1, 0); with causal, right must be 0 or -1, and is 0.
    prefix_ranges: i32 (batch, max_ranges, 2), half-open [start, end): pairs whose query position
        i + seqlen_k - seqlen_q and key j lie in one range are visible too.
    sinks: f32 (heads), one more logit in the softmax, with no value row (GPT-OSS).

    Lengths, i32
    cu_seqlens_q, cu_seqlens_k: (batch + 1), first rows of the sequences.
    seqused_k: (batch), keys in use, leftpad included ("cache_seqlens" elsewhere).
    leftpad_k: (batch), first valid key.
    block_table: (batch, columns), pages of each sequence.
    cache_batch_idx: (batch), row of a dense k and v that each sequence uses.
    max_seqlen_q, max_seqlen_k: upper bounds; 0: what the shapes allow.

    Dropout: dropout_p in [0, 1), with Philox4x32-10 keyed by dropout_seed and dropout_offset.

    Cache step: k_new, v_new (batch, seqlen_new, heads_kv, head_dim and head_dim_v), or packed with
        cu_seqlens_k_new, are written to k and v from row seqused_k[b] on, rotated first when
        `rotary` is given; then q, rotated too, attends to seqused_k[b] + seqlen_new keys.
    positions_q, positions_k_new: i32 or i64 (batch, seqlen), packed (total), with M-RoPE three rows
        of those. None: seqused_k[b] + t.

    How to compute
    num_splits: parts that the keys are split in; 0: chosen, 1: off, n: exactly n.
    precision: "default"; "fast", up to 1.45 times its error; "high", the output's rounding alone.
    batch_invariant: a sequence's bits depend on nothing but the sequence.
    threads: CPU threads; 0: all.
    stream: a CUDA stream's handle in place of the current one; then out, lse and workspace must be
        given too.
    pack: path of a file that `compile` made, for GPUs without NVRTC; None on the CPU.
    workspace: contiguous uint8 on q's device; None: made when needed.
    out: q's shape with head_dim_v, q's dtype or f32. None: made, with q's dtype.
    lse: f32 (batch, heads, seqlen_q), or (heads, total_q) when q is packed: natural log of the sum
        of exp of the scores; -inf where no key is visible, and out is 0 there.

    Returns out, or (out, lse) with return_lse.

    Raises ValueError (a value or shape that cannot be right; the text names it), TypeError (not an
    array, or of a dtype that no field takes), tallow.Error (no device, no compiler, ...). Nothing
    has been written then on the CPU.
    """
    values = dict(locals())
    _attention_call(values).run("attention")
    return (values["out"], values["lse"]) if return_lse else values["out"]


_ABSENT: dict[str, Any] = dict(attention.__kwdefaults__ or {})


def _from_options(q: Array, k: Array, v: Array, options: dict[str, Any]) -> Call:
    for name in options.keys() - _ABSENT.keys():
        raise TypeError(f"{name} is no keyword of tallow.attention")
    return _attention_call(_ABSENT | options | {"q": q, "k": k, "v": v})


def describe(q: Array, k: Array, v: Array, **options: Any) -> dict[str, str]:
    """What `attention` with these arguments would run, as names and values. Looks at shapes, dtypes
    and options alone; the same errors."""
    return _library.describe_call(_from_options(q, k, v, options).params)


def prepare(q: Array, k: Array, v: Array, **options: Any) -> None:
    """Makes `attention` with these arguments ready: compiles and loads its kernels, runs nothing.
    After it the call may be captured into a CUDA graph."""
    _from_options(q, k, v, options).run("attention_prepare")


def compile(
    q: Array, k: Array, v: Array, *, arch: str, pack: str | os.PathLike[str], **options: Any
) -> dict[str, str]:
    """Compiles the kernels that `attention` with these arguments needs on GPUs of architecture
    `arch` ("sm_80", "sm_90a", ...) and adds them to the file `pack`, which is made when missing;
    calls given the same pack= then need no compiler. Needs NVRTC, but no GPU: q, k and v may be in
    host memory. Looks at shapes, dtypes, strides and options alone. Calls that differ in dtype,
    head dimensions, layout, precision or mask may need different kernels; those of `rotary` and
    `merge` come with each.

    Returns which kernel it is and how many were compiled, as names and values. Raises as
    `attention` does."""
    if not isinstance(arch, str):
        raise TypeError(f"arch: {type(arch).__name__}; must be a str")
    _library.find_nvrtc()
    call = _from_options(q, k, v, options | {"pack": pack})
    call.params.device = CUDA
    return _library.compile_call(call.params, arch)


def kv_cache_step(
    q: Array,
    k: Array,
    v: Array,
    k_new: Array,
    v_new: Array,
    seqused_k: Array,
    *,
    causal: bool = True,
    **options: Any,
) -> Any:
    """One step of generation: writes k_new and v_new into the caches k and v from row seqused_k[b]
    on, then attends to all seqused_k[b] + seqlen_new keys.

    q: (batch, seqlen_q, heads, head_dim), or packed with cu_seqlens_q.
    k, v: the caches, (batch, rows, heads_kv, head_dim and head_dim_v), or paged with block_table;
        written in place.
    k_new, v_new: (batch, seqlen_new, heads_kv, head_dim and head_dim_v), or packed with
        cu_seqlens_k_new.
    seqused_k: i32 (batch), keys in the cache before the step. The caller adds seqlen_new to it
        afterwards.
    causal: unlike in `attention`, on unless turned off.
    options: every other keyword of `attention`.

    Returns and raises what `attention` does.
    """
    return attention(
        q, k, v, k_new=k_new, v_new=v_new, seqused_k=seqused_k, causal=causal, **options
    )


def rotary(
    x: Array,
    rotary: Rotary | None = None,
    *,
    positions: Array | None = None,
    offset: Array | None = None,
    cu_seqlens: Array | None = None,
    threads: int = 0,
    stream: int | None = None,
    pack: str | os.PathLike[str] | None = None,
    out: Array | None = None,
) -> Any:
    """Rotary position embedding of x, in f32 and rounded once.

    x: (batch, seqlen, heads, head_dim), or packed (total, heads, head_dim) with cu_seqlens; f16,
        bf16 or f32; head_dim at most 1024.
    rotary: the angles. None: Rotary(), theta 10000 over the whole head.
    positions: i32 or i64 (batch, seqlen), or packed (total); with M-RoPE (3, batch, seqlen) or
        (3, total). None: offset[b] + t.
    offset: i32 (batch), position of each sequence's first token; only without positions. None: 0.
    out: x's shape and dtype; may be x. None: made.

    Returns out. Raises as `attention` does.
    """
    values = dict(locals())
    shape = _rows_shape(
        "x", x, cu_seqlens is not None, "total, heads, head_dim", "batch, seqlen, heads, head_dim"
    )
    _need_own(values, ["out"])
    if out is None:
        values["out"] = _arrays.empty(x, shape)
    make_call(RotaryParams(), values, "x", {"out"} if out is not None else set()).run("rotary")
    return values["out"]


def merge(
    out_a: Array,
    lse_a: Array,
    out_b: Array,
    lse_b: Array,
    *,
    threads: int = 0,
    stream: int | None = None,
    pack: str | os.PathLike[str] | None = None,
    out: Array | None = None,
    lse: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """Attention over the union of two disjoint key sets, from the attention over each:
    lse = log(exp(lse_a) + exp(lse_b)), out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b.

    out_a, out_b: (batch, seqlen_q, heads, head_dim_v), or packed (total_q, heads, head_dim_v).
    lse_a, lse_b: f32 (batch, heads, seqlen_q), or packed (heads, total_q). Both -inf: 0 and -inf.
    out, lse: may be either input. None: made, with out_a's dtype.

    Returns out, or (out, lse) with return_lse. Raises as `attention` does.
    """
    values = dict(locals())
    del values["return_lse"]
    _need_own(values, ["out", "lse"] if return_lse else ["out"])
    written = {name for name in ("out", "lse") if values[name] is not None}
    if out is None:
        values["out"] = _arrays.empty(out_a, _shape("out_a", out_a))
    if lse is None and return_lse:
        values["lse"] = _arrays.empty(out_a, _shape("lse_a", lse_a), "float32")
    make_call(MergeParams(), values, "out_a", written).run("merge")
    return (values["out"], values["lse"]) if return_lse else values["out"]
