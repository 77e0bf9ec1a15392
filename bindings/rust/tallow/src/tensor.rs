use std::marker::PhantomData;
use std::os::raw::c_void;

use tallow_sys as sys;

use crate::error::{Error, Result};

/// What a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    F16,
    Bf16,
    F32,
    I32,
    I64,
}

impl DType {
    fn code(self) -> i32 {
        match self {
            DType::F16 => sys::TALLOW_F16,
            DType::Bf16 => sys::TALLOW_BF16,
            DType::F32 => sys::TALLOW_F32,
            DType::I32 => sys::TALLOW_I32,
            DType::I64 => sys::TALLOW_I64,
        }
    }
}

/// The bits of an IEEE binary16.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct F16(pub u16);

/// The bits of a bfloat16.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bf16(pub u16);

/// A type that slices of tensors have.
///
/// # Safety
///
/// It must have the size and the alignment of `DTYPE`, and be valid with any bits.
pub unsafe trait Element: Copy {
    const DTYPE: DType;
}

// SAFETY: these are what the names say.
unsafe impl Element for F16 {
    const DTYPE: DType = DType::F16;
}
unsafe impl Element for Bf16 {
    const DTYPE: DType = DType::Bf16;
}
unsafe impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
unsafe impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
unsafe impl Element for i64 {
    const DTYPE: DType = DType::I64;
}

/// A tensor that is read.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub(crate) raw: sys::tallow_tensor,
    pub(crate) on_gpu: bool,
    life: PhantomData<&'a ()>,
}

/// A tensor that is written.
#[derive(Debug)]
pub struct TensorMut<'a> {
    pub(crate) raw: sys::tallow_tensor,
    pub(crate) on_gpu: bool,
    life: PhantomData<&'a mut ()>,
}

/// No strides: row-major without gaps.
fn describe(
    data: *mut c_void,
    dtype: DType,
    shape: &[usize],
    strides: &[i64],
) -> Result<sys::tallow_tensor> {
    if shape.len() > 4 || (!strides.is_empty() && strides.len() != shape.len()) {
        return Err(Error::invalid(format!(
            "shape {shape:?} with strides {strides:?}: must be at most 4 dimensions, and as many \
             strides or none"
        )));
    }
    // To C, strides that are all zero are none.
    if !strides.is_empty() && strides.iter().all(|&s| s == 0) && shape.iter().any(|&n| n > 1) {
        return Err(Error::invalid(format!(
            "strides {strides:?}: that of the last dimension must be 1"
        )));
    }
    let mut raw = sys::tallow_tensor { data, dtype: dtype.code(), ..Default::default() };
    for (to, &size) in raw.shape.iter_mut().zip(shape) {
        *to = i64::try_from(size).unwrap_or(i64::MAX);
    }
    let contiguous = contiguous(shape);
    let given = if strides.is_empty() { &contiguous } else { strides };
    raw.strides[..shape.len()].copy_from_slice(given);
    Ok(raw)
}

fn contiguous(shape: &[usize]) -> Vec<i64> {
    let mut stride = 1i64;
    let mut strides = vec![0; shape.len()];
    for (to, &size) in strides.iter_mut().zip(shape).rev() {
        *to = stride;
        stride = stride.saturating_mul(i64::try_from(size.max(1)).unwrap_or(i64::MAX));
    }
    strides
}

/// Every element must lie in `length` elements from the first on.
fn need_inside(raw: &sys::tallow_tensor, rank: usize, length: usize) -> Result<()> {
    let (mut first, mut last) = (0i128, 0i128);
    let sizes = raw.shape[..rank].iter().zip(&raw.strides);
    if sizes.clone().any(|(&size, _)| size == 0) {
        return Ok(());
    }
    for (&size, &stride) in sizes {
        let reach = (i128::from(size) - 1) * i128::from(stride);
        if reach < 0 {
            first = first.saturating_add(reach);
        } else {
            last = last.saturating_add(reach);
        }
    }
    if first >= 0 && last < length as i128 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "shape {:?} with strides {:?} reaches elements {first} to {last}: the slice has {length}",
        &raw.shape[..rank],
        &raw.strides[..rank]
    )))
}

impl<'a> Tensor<'a> {
    /// A slice without gaps, outermost dimension first.
    pub fn new<T: Element>(data: &'a [T], shape: &[usize]) -> Result<Self> {
        Tensor::strided(data, shape, &[])
    }

    /// A slice whose first element is the tensor's; strides are in elements.
    pub fn strided<T: Element>(data: &'a [T], shape: &[usize], strides: &[i64]) -> Result<Self> {
        let raw = describe(data.as_ptr() as *mut c_void, T::DTYPE, shape, strides)?;
        need_inside(&raw, shape.len(), data.len())?;
        Ok(Tensor { raw, on_gpu: false, life: PhantomData })
    }

    /// GPU memory; no strides means without gaps.
    ///
    /// # Safety
    ///
    /// All elements must be memory of one GPU, and stay valid and unwritten until the stream of
    /// the calls that read them has passed those calls.
    pub unsafe fn on_gpu(
        data: *const c_void,
        dtype: DType,
        shape: &[usize],
        strides: &[i64],
    ) -> Result<Self> {
        let raw = describe(data as *mut c_void, dtype, shape, strides)?;
        Ok(Tensor { raw, on_gpu: true, life: PhantomData })
    }
}

impl<'a> TensorMut<'a> {
    /// A slice without gaps, outermost dimension first.
    pub fn new<T: Element>(data: &'a mut [T], shape: &[usize]) -> Result<Self> {
        TensorMut::strided(data, shape, &[])
    }

    /// A slice whose first element is the tensor's; strides are in elements.
    pub fn strided<T: Element>(
        data: &'a mut [T],
        shape: &[usize],
        strides: &[i64],
    ) -> Result<Self> {
        let raw = describe(data.as_mut_ptr() as *mut c_void, T::DTYPE, shape, strides)?;
        need_inside(&raw, shape.len(), data.len())?;
        Ok(TensorMut { raw, on_gpu: false, life: PhantomData })
    }

    /// GPU memory; no strides means without gaps.
    ///
    /// # Safety
    ///
    /// All elements must be memory of one GPU, and stay valid and neither read nor written by
    /// others until the stream of the calls that write them has passed those calls.
    pub unsafe fn on_gpu(
        data: *mut c_void,
        dtype: DType,
        shape: &[usize],
        strides: &[i64],
    ) -> Result<Self> {
        let raw = describe(data, dtype, shape, strides)?;
        Ok(TensorMut { raw, on_gpu: true, life: PhantomData })
    }
}

/// The device of a call, on whose memory all of its tensors must lie.
pub(crate) fn need_one_device(tensors: &[(&str, bool)]) -> Result<i32> {
    let on_gpu = tensors[0].1;
    match tensors.iter().find(|(_, other)| *other != on_gpu) {
        None if on_gpu => Ok(sys::TALLOW_DEVICE_CUDA),
        None => Ok(sys::TALLOW_DEVICE_CPU),
        Some((name, other)) => {
            let place = |on_gpu| if on_gpu { "a GPU" } else { "the host" };
            Err(Error::invalid(format!(
                "{name} lies on {}: must lie on {}, as {} does",
                place(*other),
                place(on_gpu),
                tensors[0].0
            )))
        }
    }
}
