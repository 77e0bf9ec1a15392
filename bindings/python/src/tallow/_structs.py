"""The structs of tallow.h, field by field. This is the only place that says them; the tests compare
sizes and offsets with what a C compiler makes of the header."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("shape", c_int64 * 4),
        ("strides", c_int64 * 4),
        ("dtype", c_int32),
        ("reserved", c_int32),
    ]


class RotaryAngles(ctypes.Structure):
    _fields_ = [
        ("rotary_dim", c_int64),
        ("theta", c_double),
        ("inv_freq", Tensor),
        ("cos", Tensor),
        ("sin", Tensor),
        ("attention_factor", c_float),
        ("pairing", c_int32),
        ("mrope", c_int32),
        ("mrope_sections", c_int32 * 3),
    ]


class RotaryParams(ctypes.Structure):
    _fields_ = [
        ("x", Tensor),
        ("out", Tensor),
        ("positions", Tensor),
        ("offset", Tensor),
        ("cu_seqlens", Tensor),
        ("rotary", RotaryAngles),
        ("stream", c_void_p),
        ("device", c_int32),
        ("threads", c_int32),
        ("pack", c_char_p),
    ]


class AttentionParams(ctypes.Structure):
    _fields_ = [
        ("q", Tensor),
        ("k", Tensor),
        ("v", Tensor),
        ("out", Tensor),
        ("lse", Tensor),
        ("cu_seqlens_q", Tensor),
        ("cu_seqlens_k", Tensor),
        ("seqused_k", Tensor),
        ("leftpad_k", Tensor),
        ("block_table", Tensor),
        ("cache_batch_idx", Tensor),
        ("max_seqlen_q", c_int64),
        ("max_seqlen_k", c_int64),
        ("alibi_slopes", Tensor),
        ("sinks", Tensor),
        ("softmax_scale", c_float),
        ("softcap", c_float),
        ("window_left", c_int64),
        ("window_right", c_int64),
        ("prefix_ranges", Tensor),
        ("mask", c_int32),
        ("dropout_p", c_float),
        ("dropout_seed", c_uint64),
        ("dropout_offset", c_uint64),
        ("k_new", Tensor),
        ("v_new", Tensor),
        ("cu_seqlens_k_new", Tensor),
        ("rotary", RotaryAngles),
        ("positions_q", Tensor),
        ("positions_k_new", Tensor),
        ("num_splits", c_int64),
        ("precision", c_int32),
        ("batch_invariant", c_int32),
        ("device", c_int32),
        ("threads", c_int32),
        ("stream", c_void_p),
        ("workspace", c_void_p),
        ("workspace_size", c_size_t),
        ("pack", c_char_p),
    ]


class MergeParams(ctypes.Structure):
    _fields_ = [
        ("out_a", Tensor),
        ("lse_a", Tensor),
        ("out_b", Tensor),
        ("lse_b", Tensor),
        ("out", Tensor),
        ("lse", Tensor),
        ("stream", c_void_p),
        ("device", c_int32),
        ("threads", c_int32),
        ("pack", c_char_p),
    ]


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "tallow_tensor": Tensor,
    "tallow_rotary_angles": RotaryAngles,
    "tallow_rotary_params": RotaryParams,
    "tallow_attention_params": AttentionParams,
    "tallow_merge_params": MergeParams,
}

DTYPES = {"float16": 1, "bfloat16": 2, "float32": 3, "int32": 4, "int64": 5}
DTYPE_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8}
CPU, CUDA = 0, 1

# Fields that Python spells as words; the order is the value.
WORDS = {
    "mask": ("none", "causal", "window"),
    "precision": ("default", "fast", "high"),
    "pairing": ("half", "interleaved"),
    "mrope": ("none", "chunked", "interleaved"),
}
