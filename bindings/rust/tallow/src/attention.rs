use std::marker::PhantomData;
use std::mem::size_of_val;
use std::os::raw::c_void;

use tallow_sys as sys;

use crate::error::{check, text, Result};
use crate::rotary::Rotary;
use crate::tensor::{need_one_device, Tensor, TensorMut};

/// How exact a result is beyond the rounding of its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Default,
    /// May use up to 1.45 times the default's error for speed.
    Fast,
    /// Leaves only the rounding of the output.
    High,
}

/// A call to come: `out = softmax(score) v` over the visible keys.
///
/// Tensors are dense `(batch, seqlen, heads, head_dim)`, or packed `(total, heads, head_dim)` with
/// [`cu_seqlens_q`](Attention::cu_seqlens_q) and [`cu_seqlens_k`](Attention::cu_seqlens_k), or
/// keys and values are pages with a [`block_table`](Attention::block_table).
#[derive(Debug)]
pub struct Attention<'a> {
    params: sys::tallow_attention_params,
    places: Vec<(&'static str, bool)>, // every tensor, and whether it lies on a GPU
    life: PhantomData<&'a mut ()>,
}

macro_rules! tensors {
    ($($(#[$doc:meta])* $name:ident)*) => { $(
        $(#[$doc])*
        pub fn $name(mut self, $name: Tensor<'a>) -> Self {
            self.params.$name = self.take(stringify!($name), $name);
            self
        }
    )* };
}

impl<'a> Attention<'a> {
    pub fn new(q: Tensor<'a>, k: Tensor<'a>, v: Tensor<'a>, out: TensorMut<'a>) -> Self {
        let mut call = Attention::empty(q, out);
        call.params.k = call.take("k", k);
        call.params.v = call.take("v", v);
        call
    }

    /// A step with a cache: `k_new` and `v_new` are written to `k` and `v` behind the `seqused_k`
    /// rows in use of each sequence, then attention runs over old and new.
    pub fn appending(
        q: Tensor<'a>,
        k: TensorMut<'a>,
        v: TensorMut<'a>,
        k_new: Tensor<'a>,
        v_new: Tensor<'a>,
        seqused_k: Tensor<'a>,
        out: TensorMut<'a>,
    ) -> Self {
        let mut call = Attention::empty(q, out).seqused_k(seqused_k);
        call.params.k = call.take_mut("k", k);
        call.params.v = call.take_mut("v", v);
        call.params.k_new = call.take("k_new", k_new);
        call.params.v_new = call.take("v_new", v_new);
        call
    }

    fn empty(q: Tensor<'a>, out: TensorMut<'a>) -> Self {
        let params = Default::default();
        let mut call = Attention { params, places: Vec::new(), life: PhantomData };
        call.params.q = call.take("q", q);
        call.params.out = call.take_mut("out", out);
        call
    }

    fn take(&mut self, name: &'static str, tensor: Tensor<'a>) -> sys::tallow_tensor {
        self.places.push((name, tensor.on_gpu));
        tensor.raw
    }

    fn take_mut(&mut self, name: &'static str, tensor: TensorMut<'a>) -> sys::tallow_tensor {
        self.places.push((name, tensor.on_gpu));
        tensor.raw
    }

    tensors! {
        /// i32 `(batch + 1)`: q and out are packed.
        cu_seqlens_q
        /// i32 `(batch + 1)`: k and v are packed; with a block table, lengths only.
        cu_seqlens_k
        /// i32 `(batch)`: keys in use.
        seqused_k
        /// i32 `(batch)`: first valid key.
        leftpad_k
        /// i32 `(batch, columns)`: k and v are pages `(pages, page_size, heads_kv, head_dim)`.
        block_table
        /// i32 `(batch)`: row of a dense k and v that each sequence uses.
        cache_batch_idx
        /// f32 `(heads)` or `(batch, heads)`.
        alibi_slopes
        /// f32 `(heads)`: one more logit each, without a value.
        sinks
        /// i32 `(batch, max_ranges, 2)`: `[start, end)` in which all positions see each other,
        /// whatever the mask.
        prefix_ranges
        /// i32 `(batch + 1)`: k_new and v_new are packed.
        cu_seqlens_k_new
        /// i32 or i64: positions of q, where they are not the cache's lengths on.
        positions_q
        /// i32 or i64: positions of k_new.
        positions_k_new
    }

    /// f32 `(batch, heads, seqlen_q)`, packed `(heads, total_q)`: the log of each row's sum.
    pub fn lse(mut self, lse: TensorMut<'a>) -> Self {
        self.params.lse = self.take_mut("lse", lse);
        self
    }

    /// No sequence has more queries; sizes the GPU's grid.
    pub fn max_seqlen_q(mut self, most: usize) -> Self {
        self.params.max_seqlen_q = most as i64;
        self
    }

    /// No sequence has more keys.
    pub fn max_seqlen_k(mut self, most: usize) -> Self {
        self.params.max_seqlen_k = most as i64;
        self
    }

    /// Default `1 / sqrt(head_dim)`, which 0 means too.
    pub fn softmax_scale(mut self, scale: f32) -> Self {
        self.params.softmax_scale = scale;
        self
    }

    /// `score = softcap * tanh(score / softcap)`.
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.params.softcap = softcap;
        self
    }

    /// Query i sees keys up to `i + seqlen_k - seqlen_q`.
    pub fn causal(mut self) -> Self {
        self.params.mask = sys::TALLOW_MASK_CAUSAL;
        (self.params.window_left, self.params.window_right) = (0, 0);
        self
    }

    /// Query i sees so many keys before and behind `i + seqlen_k - seqlen_q`; None: all of them. A
    /// model's "window of W tokens" is `(Some(W - 1), Some(0))`.
    pub fn window(mut self, left: Option<usize>, right: Option<usize>) -> Self {
        let side = |limit: Option<usize>| limit.map_or(-1, |n| i64::try_from(n).unwrap_or(-1));
        self.params.mask = sys::TALLOW_MASK_WINDOW;
        (self.params.window_left, self.params.window_right) = (side(left), side(right));
        self
    }

    /// Drops weights with probability `p`; the same seed and offset drop the same ones.
    pub fn dropout(mut self, p: f32, seed: u64, offset: u64) -> Self {
        self.params.dropout_p = p;
        (self.params.dropout_seed, self.params.dropout_offset) = (seed, offset);
        self
    }

    /// Rotates q and k_new first; of [`appending`](Attention::appending) calls.
    pub fn rotary(mut self, rotary: Rotary<'a>) -> Self {
        self.places.extend(rotary.places());
        self.params.rotary = rotary.raw;
        self
    }

    /// 1: keys are not split; n: in exactly n parts. Default: chosen.
    pub fn num_splits(mut self, splits: usize) -> Self {
        self.params.num_splits = splits as i64;
        self
    }

    pub fn precision(mut self, precision: Precision) -> Self {
        self.params.precision = match precision {
            Precision::Default => sys::TALLOW_PRECISION_DEFAULT,
            Precision::Fast => sys::TALLOW_PRECISION_FAST,
            Precision::High => sys::TALLOW_PRECISION_HIGH,
        };
        self
    }

    /// A sequence's bits depend neither on its neighbours nor on the allocated cache.
    pub fn batch_invariant(mut self) -> Self {
        self.params.batch_invariant = 1;
        self
    }

    /// CPU threads; default: OpenMP's choice.
    pub fn threads(mut self, threads: usize) -> Self {
        self.params.threads = i32::try_from(threads).unwrap_or(i32::MAX);
        self
    }

    /// The CUDA stream to run on; default: the legacy default stream.
    ///
    /// # Safety
    ///
    /// A stream of the tensors' GPU.
    pub unsafe fn stream(mut self, stream: *mut c_void) -> Self {
        self.params.stream = stream;
        self
    }

    /// Scratch on the GPU, as much as [`workspace_bytes`](Attention::workspace_bytes) says.
    ///
    /// # Safety
    ///
    /// Nobody else may use it until the stream has passed the call.
    pub unsafe fn workspace(mut self, data: *mut c_void, bytes: usize) -> Self {
        (self.params.workspace, self.params.workspace_size) = (data, bytes);
        self
    }

    fn checked(&self) -> Result<sys::tallow_attention_params> {
        let mut params = self.params;
        params.device = need_one_device(&self.places)?;
        Ok(params)
    }

    /// Bytes of scratch that the call needs: on a GPU they are given, on the CPU allocated.
    pub fn workspace_bytes(&self) -> Result<usize> {
        let (params, mut bytes) = (self.checked()?, 0);
        // SAFETY: the struct is as large as said.
        check(unsafe {
            sys::tallow_attention_workspace(&params, size_of_val(&params), &mut bytes)
        })?;
        Ok(bytes)
    }

    /// Compiles and loads what the call needs, and runs nothing.
    pub fn prepare(&self) -> Result<()> {
        let params = self.checked()?;
        // SAFETY: the struct is as large as said.
        check(unsafe { sys::tallow_attention_prepare(&params, size_of_val(&params)) })
    }

    /// What the call would run, one `name value` a line.
    pub fn describe(&self) -> Result<String> {
        let params = self.checked()?;
        // SAFETY: struct and buffer are as large as said.
        text(|to, size| unsafe {
            sys::tallow_attention_describe(&params, size_of_val(&params), to, size)
        })
    }

    /// On a GPU the work is queued on the stream.
    pub fn run(self) -> Result<()> {
        let params = self.checked()?;
        // SAFETY: slices are borrowed for 'a and bounds were checked when tensors were made; what
        // vectors hold is checked by the call. GPU memory is as its constructors demand.
        check(unsafe { sys::tallow_attention(&params, size_of_val(&params)) })
    }
}
