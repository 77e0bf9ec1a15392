//! A call as data, and its shape; `cpu.rs` and `cuda.rs` find the memory and run it.

use std::sync::RwLockReadGuard;

use candle::{CpuStorage, CustomOp3, DType, Error, Layout, Result, Shape, Storage, Tensor};
use tallow::Attention;

pub(crate) struct Packed {
    pub seqlens_q: Tensor,
    pub seqlens_k: Tensor,
    pub max_seqlen_q: usize,
    pub max_seqlen_k: usize,
    pub block_table: Option<Tensor>,
    pub page_block_size: usize,
    pub mm_prefix_ranges: Option<Tensor>,
}

pub(crate) struct Call {
    pub softmax_scale: f32,
    pub alibi_slopes: Option<Tensor>,
    pub window: (Option<usize>, Option<usize>),
    pub softcap: Option<f32>,
    pub packed: Option<Packed>,
    /// The result is flat and f32: all of out, then all of the lse.
    pub with_lse: bool,
}

/// A tensor whose memory is held still.
pub(crate) type Held<'a> = (RwLockReadGuard<'a, Storage>, &'a Layout);

/// The vectors of a call, in memory.
#[derive(Default)]
pub(crate) struct Lists<T> {
    pub alibi_slopes: Option<T>,
    pub seqlens_q: Option<T>,
    pub seqlens_k: Option<T>,
    pub block_table: Option<T>,
    pub mm_prefix_ranges: Option<T>,
}

impl<T> Lists<T> {
    pub fn map<'a, U>(&'a self, f: impl Fn(&'a T) -> Result<U>) -> Result<Lists<U>> {
        Ok(Lists {
            alibi_slopes: self.alibi_slopes.as_ref().map(&f).transpose()?,
            seqlens_q: self.seqlens_q.as_ref().map(&f).transpose()?,
            seqlens_k: self.seqlens_k.as_ref().map(&f).transpose()?,
            block_table: self.block_table.as_ref().map(&f).transpose()?,
            mm_prefix_ranges: self.mm_prefix_ranges.as_ref().map(&f).transpose()?,
        })
    }
}

pub(crate) fn wrap(error: tallow::Error) -> Error {
    Error::Msg(error.to_string())
}

/// Strides of a layout in Tallow's terms.
pub(crate) fn strides(layout: &Layout) -> Vec<i64> {
    layout.stride().iter().map(|&stride| stride as i64).collect()
}

impl Call {
    fn masked(&self) -> bool {
        self.window != (None, None)
    }

    pub fn hold(&self) -> Lists<Held<'_>> {
        let packed = self.packed.as_ref();
        let ranges = packed.and_then(|p| p.mm_prefix_ranges.as_ref());
        let table = packed.and_then(|p| p.block_table.as_ref());
        Lists {
            alibi_slopes: self.alibi_slopes.as_ref().map(Tensor::storage_and_layout),
            seqlens_q: packed.map(|p| p.seqlens_q.storage_and_layout()),
            seqlens_k: packed.map(|p| p.seqlens_k.storage_and_layout()),
            block_table: table.map(Tensor::storage_and_layout),
            // Ranges widen a mask; where there is none they say nothing.
            mm_prefix_ranges: ranges.filter(|_| self.masked()).map(Tensor::storage_and_layout),
        }
    }

    /// Shapes of out and of the lse, from those of q and v.
    pub fn shapes(&self, q: &Layout, k: &Layout, v: &Layout) -> Result<(Vec<usize>, Vec<usize>)> {
        let (dims, rank) = (q.dims(), if self.packed.is_some() { 3 } else { 4 });
        let paged = self.packed.as_ref().filter(|p| p.block_table.is_some());
        let rank_k = if paged.is_some() { 4 } else { rank };
        if dims.len() != rank || k.dims().len() != rank_k || v.dims().len() != rank_k {
            candle::bail!(
                "q {dims:?}, k {:?}, v {:?}: must have {rank}, {rank_k} and {rank_k} dimensions",
                k.dims(),
                v.dims()
            )
        }
        if let Some(packed) = paged {
            if k.dims()[1] != packed.page_block_size {
                candle::bail!(
                    "page_block_size {}: must be that of k, {:?}",
                    packed.page_block_size,
                    k.dims()
                )
            }
        }
        let mut out = dims.to_vec();
        out[rank - 1] = v.dims()[rank_k - 1];
        let lse = match rank {
            3 => vec![dims[1], dims[0]],
            _ => vec![dims[0], dims[2], dims[1]],
        };
        Ok((out, lse))
    }

    /// What the op returns: out, or out and lse in a row.
    pub fn result_shape(&self, out: &[usize], lse: &[usize]) -> Shape {
        if !self.with_lse {
            return Shape::from(out.to_vec());
        }
        Shape::from(vec![out.iter().product::<usize>() + lse.iter().product::<usize>()])
    }

    /// Every option of the call.
    pub fn apply<'a>(
        &self,
        mut call: Attention<'a>,
        lists: Lists<tallow::Tensor<'a>>,
    ) -> Attention<'a> {
        // To Tallow scale 0 is the default; here it makes all scores alike.
        let scale = if self.softmax_scale == 0.0 { f32::MIN_POSITIVE } else { self.softmax_scale };
        call = call.softmax_scale(scale).softcap(self.softcap.unwrap_or(0.0));
        if self.masked() {
            call = call.window(self.window.0, self.window.1);
        }
        if let Some(packed) = &self.packed {
            call = call.max_seqlen_q(packed.max_seqlen_q).max_seqlen_k(packed.max_seqlen_k);
        }
        if let Some(slopes) = lists.alibi_slopes {
            call = call.alibi_slopes(slopes);
        }
        if let Some(seqlens) = lists.seqlens_q {
            call = call.cu_seqlens_q(seqlens);
        }
        if let Some(seqlens) = lists.seqlens_k {
            call = call.cu_seqlens_k(seqlens);
        }
        if let Some(table) = lists.block_table {
            call = call.block_table(table);
        }
        if let Some(ranges) = lists.mm_prefix_ranges {
            call = call.prefix_ranges(ranges);
        }
        call
    }

    /// Runs the op and takes its result apart.
    pub fn with_lse(self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (out, lse) = self.shapes(q.layout(), k.layout(), v.layout())?;
        let count = out.iter().product();
        let flat = q.apply_op3(k, v, self)?;
        let rows = flat.narrow(0, 0, count)?.reshape(out)?.to_dtype(q.dtype())?;
        let lse = flat.narrow(0, count, lse.iter().product())?.reshape(lse)?;
        Ok((rows, lse))
    }

    pub fn out_dtype(&self, dtype: DType) -> Result<DType> {
        match dtype {
            DType::F16 | DType::BF16 | DType::F32 if self.with_lse => Ok(DType::F32),
            DType::F16 | DType::BF16 | DType::F32 => Ok(dtype),
            _ => candle::bail!("q is {dtype:?}: must be f16, bf16 or f32"),
        }
    }
}

impl CustomOp3 for Call {
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
        crate::cpu::run(self, (q, q_l), (k, k_l), (v, v_l))
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
        crate::cuda::run(self, (q, q_l), (k, k_l), (v, v_l))
    }
}
