use std::marker::PhantomData;
use std::mem::size_of_val;
use std::os::raw::c_void;

use tallow_sys as sys;

use crate::error::{check, Result};
use crate::tensor::{need_one_device, Tensor, TensorMut};

/// Which elements turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// i with i + rotary_dim / 2.
    Half,
    /// 2i with 2i + 1.
    Interleaved,
}

/// Which of three rows of positions a pair takes, with the pairs of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mrope {
    Chunked([i32; 3]),
    Interleaved([i32; 3]),
}

/// How positions become angles, which are exact at every position.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    pub(crate) raw: sys::tallow_rotary_angles,
    tables: Option<bool>, // given, and whether they lie on a GPU
    life: PhantomData<&'a ()>,
}

impl<'a> Rotary<'a> {
    /// Turns the first `rotary_dim` elements of a head by `position * theta^(-2i / rotary_dim)`.
    pub fn new(rotary_dim: usize, theta: f64) -> Self {
        let raw = sys::tallow_rotary_angles {
            rotary_dim: i64::try_from(rotary_dim).unwrap_or(i64::MAX),
            theta,
            ..Default::default()
        };
        Rotary { raw, tables: None, life: PhantomData }
    }

    /// Radians per position of each pair, f32 in host memory, in place of theta.
    pub fn inv_freq(mut self, inv_freq: &'a [f32]) -> Result<Self> {
        self.raw.inv_freq = Tensor::new(inv_freq, &[inv_freq.len()])?.raw;
        Ok(self)
    }

    /// Tables `(max_position, rotary_dim / 2)` in place of theta, taken as they are.
    pub fn tables(mut self, cos: Tensor<'a>, sin: Tensor<'a>) -> Result<Self> {
        need_one_device(&[("cos", cos.on_gpu), ("sin", sin.on_gpu)])?;
        self.tables = Some(cos.on_gpu);
        (self.raw.cos, self.raw.sin) = (cos.raw, sin.raw);
        Ok(self)
    }

    /// Multiplies cos and sin (YaRN, LongRoPE).
    pub fn attention_factor(mut self, factor: f32) -> Self {
        self.raw.attention_factor = factor;
        self
    }

    /// Default: half.
    pub fn pairing(mut self, pairing: Pairing) -> Self {
        self.raw.pairing = match pairing {
            Pairing::Half => sys::TALLOW_PAIRING_HALF,
            Pairing::Interleaved => sys::TALLOW_PAIRING_INTERLEAVED,
        };
        self
    }

    /// Positions have three rows: time, height, width.
    pub fn mrope(mut self, mrope: Mrope) -> Self {
        (self.raw.mrope, self.raw.mrope_sections) = match mrope {
            Mrope::Chunked(sections) => (sys::TALLOW_MROPE_CHUNKED, sections),
            Mrope::Interleaved(sections) => (sys::TALLOW_MROPE_INTERLEAVED, sections),
        };
        self
    }

    pub(crate) fn places(&self) -> Option<(&'static str, bool)> {
        self.tables.map(|on_gpu| ("rotary.cos", on_gpu))
    }
}

/// A rotation to come, of `x` into `out`; positions count from 0 unless they are given.
#[derive(Debug)]
pub struct RotaryEmbedding<'a> {
    params: sys::tallow_rotary_params,
    places: Vec<(&'static str, bool)>,
    life: PhantomData<&'a mut ()>,
}

impl<'a> RotaryEmbedding<'a> {
    /// `(batch, seqlen, heads, head_dim)`, or packed with
    /// [`cu_seqlens`](RotaryEmbedding::cu_seqlens).
    pub fn new(x: Tensor<'a>, out: TensorMut<'a>, rotary: Rotary<'a>) -> Self {
        let mut places = vec![("x", x.on_gpu), ("out", out.on_gpu)];
        places.extend(rotary.places());
        let params = sys::tallow_rotary_params {
            x: x.raw,
            out: out.raw,
            rotary: rotary.raw,
            ..Default::default()
        };
        RotaryEmbedding { params, places, life: PhantomData }
    }

    /// Rotates `x` where it lies.
    pub fn in_place(x: TensorMut<'a>, rotary: Rotary<'a>) -> Self {
        let mut places = vec![("x", x.on_gpu)];
        places.extend(rotary.places());
        let params = sys::tallow_rotary_params {
            x: x.raw,
            out: x.raw,
            rotary: rotary.raw,
            ..Default::default()
        };
        RotaryEmbedding { params, places, life: PhantomData }
    }

    /// i32 or i64 `(batch, seqlen)` or packed `(total)`; with M-RoPE three rows of them.
    pub fn positions(mut self, positions: Tensor<'a>) -> Self {
        self.places.push(("positions", positions.on_gpu));
        self.params.positions = positions.raw;
        self
    }

    /// i32 `(batch)`: position of each sequence's first token.
    pub fn offset(mut self, offset: Tensor<'a>) -> Self {
        self.places.push(("offset", offset.on_gpu));
        self.params.offset = offset.raw;
        self
    }

    /// i32 `(batch + 1)`: x is packed.
    pub fn cu_seqlens(mut self, cu_seqlens: Tensor<'a>) -> Self {
        self.places.push(("cu_seqlens", cu_seqlens.on_gpu));
        self.params.cu_seqlens = cu_seqlens.raw;
        self
    }

    /// # Safety
    ///
    /// A stream of the tensors' GPU.
    pub unsafe fn stream(mut self, stream: *mut c_void) -> Self {
        self.params.stream = stream;
        self
    }

    /// On a GPU the work is queued on the stream.
    pub fn run(mut self) -> Result<()> {
        self.params.device = need_one_device(&self.places)?;
        // SAFETY: as in Attention::run.
        check(unsafe { sys::tallow_rotary(&self.params, size_of_val(&self.params)) })
    }
}
