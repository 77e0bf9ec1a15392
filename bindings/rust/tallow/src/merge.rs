use std::mem::size_of_val;
use std::os::raw::c_void;

use tallow_sys as sys;

use crate::error::{check, Result};
use crate::tensor::{need_one_device, Tensor, TensorMut};

/// Attention over the union of two disjoint sets of keys, from the result and the log-sum-exp over
/// each: `a` and `b` are `(out, lse)`. On a GPU the work is queued on the legacy default stream.
pub fn merge(
    a: (Tensor, Tensor),
    b: (Tensor, Tensor),
    out: TensorMut,
    lse: Option<TensorMut>,
) -> Result<()> {
    // SAFETY: null is a stream of any GPU.
    unsafe { merge_on(std::ptr::null_mut(), a, b, out, lse) }
}

/// [`merge`] on another stream.
///
/// # Safety
///
/// `stream` must be null or a stream of the tensors' GPU.
pub unsafe fn merge_on(
    stream: *mut c_void,
    a: (Tensor, Tensor),
    b: (Tensor, Tensor),
    out: TensorMut,
    lse: Option<TensorMut>,
) -> Result<()> {
    let mut places = vec![
        ("out_a", a.0.on_gpu),
        ("lse_a", a.1.on_gpu),
        ("out_b", b.0.on_gpu),
        ("lse_b", b.1.on_gpu),
        ("out", out.on_gpu),
    ];
    places.extend(lse.as_ref().map(|lse| ("lse", lse.on_gpu)));
    let params = sys::tallow_merge_params {
        out_a: a.0.raw,
        lse_a: a.1.raw,
        out_b: b.0.raw,
        lse_b: b.1.raw,
        out: out.raw,
        lse: lse.map_or_else(Default::default, |lse| lse.raw),
        stream,
        device: need_one_device(&places)?,
        ..Default::default()
    };
    check(sys::tallow_merge(&params, size_of_val(&params)))
}
