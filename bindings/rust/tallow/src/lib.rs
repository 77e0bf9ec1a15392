//! Exact attention, on CPUs and NVIDIA GPUs.
//!
//! A call is built from [`Tensor`]s, which borrow slices or stand for GPU memory, and then run:
//!
//! ```
//! use tallow::{Attention, Tensor, TensorMut};
//!
//! // One sequence of 3 queries and 5 keys, 4 heads that share 2 key heads, head_dim 8.
//! let q = vec![0.5f32; 3 * 4 * 8];
//! let k = vec![0.25f32; 5 * 2 * 8];
//! let v: Vec<f32> = (0..5 * 2 * 8).map(|i| (i / 16) as f32).collect();
//! let mut out = vec![0f32; 3 * 4 * 8];
//! Attention::new(
//!     Tensor::new(&q, &[1, 3, 4, 8])?,
//!     Tensor::new(&k, &[1, 5, 2, 8])?,
//!     Tensor::new(&v, &[1, 5, 2, 8])?,
//!     TensorMut::new(&mut out, &[1, 3, 4, 8])?,
//! )
//! .causal()
//! .run()?;
//! // All scores are alike, so a row is the mean of the values it sees: the last one sees 0 to 4.
//! assert!((out[2 * 4 * 8] - 2.0).abs() < 1e-6);
//! # Ok::<(), tallow::Error>(())
//! ```
//!
//! Shapes, layouts and every option mean what `include/tallow.h` says; zero and absent are the
//! defaults. On the CPU everything is checked, lengths and page indices included, so all of it is
//! safe. GPU memory is the caller's word: its constructors are `unsafe`, and a call on it returns
//! before the GPU is done.

mod attention;
mod error;
mod merge;
mod rotary;
mod tensor;

pub use attention::{Attention, Precision};
pub use error::{Error, Result, Status};
pub use merge::{merge, merge_on};
pub use rotary::{Mrope, Pairing, Rotary, RotaryEmbedding};
pub use tensor::{Bf16, DType, Element, Tensor, TensorMut, F16};

/// The C interface.
pub use tallow_sys as sys;

/// What this machine offers, one `name value` a line: version, CPU level, threads, GPUs, driver,
/// NVRTC, cache folder.
pub fn system() -> Result<String> {
    // SAFETY: the buffer is as large as said.
    error::text(|text, size| unsafe { sys::tallow_system_describe(text, size) })
}

/// Version of the library: major * 1000000 + minor * 1000 + patch.
pub fn version() -> u32 {
    // SAFETY: takes nothing.
    unsafe { sys::tallow_version() }
}
