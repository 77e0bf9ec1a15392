//! The C interface of Tallow: see `include/tallow.h`, which is its manual. The crate `tallow` is
//! the safe one.
#![allow(non_camel_case_types)]

use std::os::raw::{c_char, c_void};

/// As the header has it: `tallow_status`, 0 is success.
pub type tallow_status = i32;

pub const TALLOW_OK: i32 = 0;
pub const TALLOW_INVALID_ARGUMENT: i32 = 1;
pub const TALLOW_UNSUPPORTED: i32 = 2;
pub const TALLOW_OUT_OF_MEMORY: i32 = 3;
pub const TALLOW_WORKSPACE_TOO_SMALL: i32 = 4;
pub const TALLOW_NO_DEVICE: i32 = 5;
pub const TALLOW_NO_COMPILER: i32 = 6;
pub const TALLOW_COMPILE_FAILED: i32 = 7;
pub const TALLOW_DEVICE_ERROR: i32 = 8;

pub const TALLOW_F16: i32 = 1;
pub const TALLOW_BF16: i32 = 2;
pub const TALLOW_F32: i32 = 3;
pub const TALLOW_I32: i32 = 4;
pub const TALLOW_I64: i32 = 5;

pub const TALLOW_PAIRING_HALF: i32 = 0;
pub const TALLOW_PAIRING_INTERLEAVED: i32 = 1;

pub const TALLOW_MROPE_NONE: i32 = 0;
pub const TALLOW_MROPE_CHUNKED: i32 = 1;
pub const TALLOW_MROPE_INTERLEAVED: i32 = 2;

pub const TALLOW_DEVICE_CPU: i32 = 0;
pub const TALLOW_DEVICE_CUDA: i32 = 1;

pub const TALLOW_MASK_NONE: i32 = 0;
pub const TALLOW_MASK_CAUSAL: i32 = 1;
pub const TALLOW_MASK_WINDOW: i32 = 2;

pub const TALLOW_PRECISION_DEFAULT: i32 = 0;
pub const TALLOW_PRECISION_FAST: i32 = 1;
pub const TALLOW_PRECISION_HIGH: i32 = 2;

/// Zero, which every field defaults to.
macro_rules! zero_is_default {
    ($($name:ident)*) => { $(
        impl Default for $name {
            fn default() -> Self {
                // SAFETY: every field is a number, a pointer or made of those.
                unsafe { core::mem::zeroed() }
            }
        }
    )* };
}
zero_is_default! {
    tallow_tensor tallow_rotary_angles tallow_rotary_params tallow_attention_params
    tallow_merge_params
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tallow_tensor {
    pub data: *mut c_void,
    pub shape: [i64; 4],
    pub strides: [i64; 4],
    pub dtype: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tallow_rotary_angles {
    pub rotary_dim: i64,
    pub theta: f64,
    pub inv_freq: tallow_tensor,
    pub cos: tallow_tensor,
    pub sin: tallow_tensor,
    pub attention_factor: f32,
    pub pairing: i32,
    pub mrope: i32,
    pub mrope_sections: [i32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tallow_rotary_params {
    pub x: tallow_tensor,
    pub out: tallow_tensor,
    pub positions: tallow_tensor,
    pub offset: tallow_tensor,
    pub cu_seqlens: tallow_tensor,
    pub rotary: tallow_rotary_angles,
    pub stream: *mut c_void,
    pub device: i32,
    pub threads: i32,
    pub pack: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tallow_attention_params {
    pub q: tallow_tensor,
    pub k: tallow_tensor,
    pub v: tallow_tensor,
    pub out: tallow_tensor,
    pub lse: tallow_tensor,
    pub cu_seqlens_q: tallow_tensor,
    pub cu_seqlens_k: tallow_tensor,
    pub seqused_k: tallow_tensor,
    pub leftpad_k: tallow_tensor,
    pub block_table: tallow_tensor,
    pub cache_batch_idx: tallow_tensor,
    pub max_seqlen_q: i64,
    pub max_seqlen_k: i64,
    pub alibi_slopes: tallow_tensor,
    pub sinks: tallow_tensor,
    pub softmax_scale: f32,
    pub softcap: f32,
    pub window_left: i64,
    pub window_right: i64,
    pub prefix_ranges: tallow_tensor,
    pub mask: i32,
    pub dropout_p: f32,
    pub dropout_seed: u64,
    pub dropout_offset: u64,
    pub k_new: tallow_tensor,
    pub v_new: tallow_tensor,
    pub cu_seqlens_k_new: tallow_tensor,
    pub rotary: tallow_rotary_angles,
    pub positions_q: tallow_tensor,
    pub positions_k_new: tallow_tensor,
    pub num_splits: i64,
    pub precision: i32,
    pub batch_invariant: i32,
    pub device: i32,
    pub threads: i32,
    pub stream: *mut c_void,
    pub workspace: *mut c_void,
    pub workspace_size: usize,
    pub pack: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tallow_merge_params {
    pub out_a: tallow_tensor,
    pub lse_a: tallow_tensor,
    pub out_b: tallow_tensor,
    pub lse_b: tallow_tensor,
    pub out: tallow_tensor,
    pub lse: tallow_tensor,
    pub stream: *mut c_void,
    pub device: i32,
    pub threads: i32,
    pub pack: *const c_char,
}

extern "C" {
    pub fn tallow_status_name(status: tallow_status) -> *const c_char;
    pub fn tallow_last_error() -> *const c_char;
    pub fn tallow_version() -> u32;
    pub fn tallow_system_describe(text: *mut c_char, text_size: usize) -> tallow_status;
    pub fn tallow_rotary(params: *const tallow_rotary_params, params_size: usize) -> tallow_status;
    pub fn tallow_attention(
        params: *const tallow_attention_params,
        params_size: usize,
    ) -> tallow_status;
    pub fn tallow_attention_workspace(
        params: *const tallow_attention_params,
        params_size: usize,
        bytes: *mut usize,
    ) -> tallow_status;
    pub fn tallow_attention_prepare(
        params: *const tallow_attention_params,
        params_size: usize,
    ) -> tallow_status;
    pub fn tallow_attention_describe(
        params: *const tallow_attention_params,
        params_size: usize,
        text: *mut c_char,
        text_size: usize,
    ) -> tallow_status;
    pub fn tallow_attention_compile(
        params: *const tallow_attention_params,
        params_size: usize,
        arch: *const c_char,
        text: *mut c_char,
        text_size: usize,
    ) -> tallow_status;
    pub fn tallow_merge(params: *const tallow_merge_params, params_size: usize) -> tallow_status;
}
