//! The functions of candle-flash-attn, by their names and with their arguments, on Tallow.
//!
//! In the Cargo.toml of a program that uses candle-flash-attn, one line changes:
//!
//! ```toml
//! candle-flash-attn = { package = "candle-tallow", git = "...", features = ["cuda"] }
//! ```
//!
//! and its code stays as it is. Tensors may lie on a GPU (feature `cuda`) or on the CPU; f16, bf16
//! and f32 are computed. Long keys are split over the whole GPU where there are few queries. The
//! functions that end in `_with_lse` return the log-sum-exp of each row too, `(batch, heads,
//! seqlen_q)` or packed `(heads, total_q)`, f32. Any `page_block_size` will do.
//!
//! `window_size_left` and `window_size_right` limit what a query sees on either side of its own
//! position, which is aligned with the last key; `None` is no limit, and `None, Some(0)` is causal.

mod call;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use candle::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use call::{Call, Packed};

/// What [`flash_attn`] and its kin apply, as an operation of its own.
pub struct FlashAttn {
    pub softmax_scale: f32,
    pub alibi_slopes: Option<Tensor>,
    pub window_size_left: Option<usize>,
    pub window_size_right: Option<usize>,
    pub softcap: Option<f32>,
}

impl FlashAttn {
    fn call(&self) -> Call {
        Call {
            softmax_scale: self.softmax_scale,
            alibi_slopes: self.alibi_slopes.clone(),
            window: (self.window_size_left, self.window_size_right),
            softcap: self.softcap,
            packed: None,
            with_lse: false,
        }
    }
}

impl CustomOp3 for FlashAttn {
    fn name(&self) -> &'static str {
        "flash-attn"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.call().cpu_fwd(q, q_l, k, k_l, v, v_l)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle::CudaStorage,
        q_l: &Layout,
        k: &candle::CudaStorage,
        k_l: &Layout,
        v: &candle::CudaStorage,
        v_l: &Layout,
    ) -> Result<(candle::CudaStorage, Shape)> {
        self.call().cuda_fwd(q, q_l, k, k_l, v, v_l)
    }
}

fn causal_right(causal: bool) -> Option<usize> {
    causal.then_some(0)
}

// ---- dense: q (batch, seqlen_q, heads, head_dim), k and v (batch, seqlen_k, heads_kv, head_dim) --

/// `softmax(q k^T softmax_scale) v`.
pub fn flash_attn(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    flash_attn_windowed(q, k, v, softmax_scale, None, causal_right(causal))
}

/// With a window.
pub fn flash_attn_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let op = FlashAttn {
        softmax_scale,
        alibi_slopes: None,
        window_size_left,
        window_size_right,
        softcap: None,
    };
    q.apply_op3(k, v, op)
}

/// With ALiBi; slopes are f32 `(heads)`.
pub fn flash_attn_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    flash_attn_alibi_windowed(q, k, v, alibi_slopes, softmax_scale, None, causal_right(causal))
}

/// With ALiBi and a window.
pub fn flash_attn_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let op = FlashAttn {
        softmax_scale,
        alibi_slopes: Some(alibi_slopes.clone()),
        window_size_left,
        window_size_right,
        softcap: None,
    };
    q.apply_op3(k, v, op)
}

/// With everything there is: `softcap tanh(score / softcap)`, 0 being none.
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    let op = FlashAttn {
        softmax_scale,
        alibi_slopes: alibi_slopes.cloned(),
        window_size_left,
        window_size_right,
        softcap: Some(softcap),
    };
    q.apply_op3(k, v, op)
}

/// [`flash_attn_alibi_windowed_softcap`], and the log-sum-exp `(batch, heads, seqlen_q)`.
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_with_lse(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: Option<f32>,
) -> Result<(Tensor, Tensor)> {
    let call = Call {
        softmax_scale,
        alibi_slopes: alibi_slopes.cloned(),
        window: (window_size_left, window_size_right),
        softcap,
        packed: None,
        with_lse: true,
    };
    call.with_lse(q, k, v)
}

// ---- packed: q (total_q, heads, head_dim), k and v (total_k, heads_kv, head_dim); seqlens_q and --
// ---- seqlens_k are u32 or i32 (batch + 1): sequence b owns rows seqlens[b] to seqlens[b + 1] -----

struct Varlen<'a> {
    seqlens: (&'a Tensor, &'a Tensor),
    max_seqlens: (usize, usize),
    softmax_scale: f32,
    window: (Option<usize>, Option<usize>),
}

impl Varlen<'_> {
    fn call(&self, alibi_slopes: Option<&Tensor>, softcap: Option<f32>) -> Call {
        let packed = Packed {
            seqlens_q: self.seqlens.0.clone(),
            seqlens_k: self.seqlens.1.clone(),
            max_seqlen_q: self.max_seqlens.0,
            max_seqlen_k: self.max_seqlens.1,
            block_table: None,
            page_block_size: 0,
            mm_prefix_ranges: None,
        };
        Call {
            softmax_scale: self.softmax_scale,
            alibi_slopes: alibi_slopes.cloned(),
            window: self.window,
            softcap,
            packed: Some(packed),
            with_lse: false,
        }
    }
}

/// [`flash_attn`] over packed sequences.
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    let varlen = Varlen {
        seqlens: (seqlens_q, seqlens_k),
        max_seqlens: (max_seqlen_q, max_seqlen_k),
        softmax_scale,
        window: (None, causal_right(causal)),
    };
    q.apply_op3(k, v, varlen.call(None, None))
}

/// [`flash_attn_windowed`] over packed sequences.
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let varlen = Varlen {
        seqlens: (seqlens_q, seqlens_k),
        max_seqlens: (max_seqlen_q, max_seqlen_k),
        softmax_scale,
        window: (window_size_left, window_size_right),
    };
    q.apply_op3(k, v, varlen.call(None, None))
}

/// Over packed queries and pages of keys: k and v are `(pages, page_block_size, heads_kv,
/// head_dim)`, `block_table` is u32 or i32 `(batch, columns)`. `mm_prefix_ranges`, i32 `(batch,
/// ranges, 2)`, are `[start, end)` in which all positions see each other, whatever the window.
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen_paged_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    block_table: &Tensor,
    mm_prefix_ranges: Option<&Tensor>,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    page_block_size: usize,
    softcap: Option<f32>,
) -> Result<Tensor> {
    let varlen = Varlen {
        seqlens: (seqlens_q, seqlens_k),
        max_seqlens: (max_seqlen_q, max_seqlen_k),
        softmax_scale,
        window: (window_size_left, window_size_right),
    };
    let mut call = varlen.call(None, softcap);
    if let Some(packed) = &mut call.packed {
        packed.block_table = Some(block_table.clone());
        packed.page_block_size = page_block_size;
        packed.mm_prefix_ranges = mm_prefix_ranges.cloned();
    }
    q.apply_op3(k, v, call)
}

/// [`flash_attn_alibi`] over packed sequences.
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    let varlen = Varlen {
        seqlens: (seqlens_q, seqlens_k),
        max_seqlens: (max_seqlen_q, max_seqlen_k),
        softmax_scale,
        window: (None, causal_right(causal)),
    };
    q.apply_op3(k, v, varlen.call(Some(alibi_slopes), None))
}

/// [`flash_attn_alibi_windowed`] over packed sequences.
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let varlen = Varlen {
        seqlens: (seqlens_q, seqlens_k),
        max_seqlens: (max_seqlen_q, max_seqlen_k),
        softmax_scale,
        window: (window_size_left, window_size_right),
    };
    q.apply_op3(k, v, varlen.call(Some(alibi_slopes), None))
}

/// [`flash_attn_alibi_windowed_softcap`] over packed sequences.
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    let varlen = Varlen {
        seqlens: (seqlens_q, seqlens_k),
        max_seqlens: (max_seqlen_q, max_seqlen_k),
        softmax_scale,
        window: (window_size_left, window_size_right),
    };
    q.apply_op3(k, v, varlen.call(alibi_slopes, Some(softcap)))
}

/// [`flash_attn_varlen_alibi_windowed_softcap`], and the log-sum-exp `(heads, total_q)`.
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen_with_lse(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: Option<f32>,
) -> Result<(Tensor, Tensor)> {
    let varlen = Varlen {
        seqlens: (seqlens_q, seqlens_k),
        max_seqlens: (max_seqlen_q, max_seqlen_k),
        softmax_scale,
        window: (window_size_left, window_size_right),
    };
    let mut call = varlen.call(alibi_slopes, softcap);
    call.with_lse = true;
    call.with_lse(q, k, v)
}
