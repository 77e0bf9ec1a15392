use std::ffi::CStr;
use std::fmt;
use std::os::raw::c_char;

use tallow_sys as sys;

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// A field's value can never be right.
    InvalidArgument,
    /// Meaningful, but not on this backend, device or version.
    Unsupported,
    /// Host or device memory ran out.
    OutOfMemory,
    /// [`crate::Attention::workspace_bytes`] says how much there must be.
    WorkspaceTooSmall,
    /// No driver, or no usable GPU.
    NoDevice,
    /// A kernel must be compiled, and NVRTC is missing or forbidden.
    NoCompiler,
    /// NVRTC rejected a kernel.
    CompileFailed,
    /// The driver reported an error.
    DeviceError,
    /// A status that this version of the crate does not know.
    Other(i32),
}

/// A status and its sentence, which names the field, its value and what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub status: Status,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}: {}", self.status, self.message)
    }
}

impl std::error::Error for Error {}

impl Error {
    pub(crate) fn invalid(message: String) -> Error {
        Error { status: Status::InvalidArgument, message }
    }
}

/// The outcome of a C call that this thread has just made.
pub(crate) fn check(status: sys::tallow_status) -> Result<()> {
    let status = match status {
        sys::TALLOW_OK => return Ok(()),
        sys::TALLOW_INVALID_ARGUMENT => Status::InvalidArgument,
        sys::TALLOW_UNSUPPORTED => Status::Unsupported,
        sys::TALLOW_OUT_OF_MEMORY => Status::OutOfMemory,
        sys::TALLOW_WORKSPACE_TOO_SMALL => Status::WorkspaceTooSmall,
        sys::TALLOW_NO_DEVICE => Status::NoDevice,
        sys::TALLOW_NO_COMPILER => Status::NoCompiler,
        sys::TALLOW_COMPILE_FAILED => Status::CompileFailed,
        sys::TALLOW_DEVICE_ERROR => Status::DeviceError,
        other => Status::Other(other),
    };
    // SAFETY: never null, ends with a NUL, and stays until this thread's next call.
    let message = unsafe { CStr::from_ptr(sys::tallow_last_error()) };
    Err(Error { status, message: message.to_string_lossy().into_owned() })
}

/// The text that a C call writes to a buffer and its size.
pub(crate) fn text(write: impl FnOnce(*mut c_char, usize) -> sys::tallow_status) -> Result<String> {
    let mut buffer = vec![0u8; 16384];
    check(write(buffer.as_mut_ptr() as *mut c_char, buffer.len()))?;
    let end = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
    buffer.truncate(end);
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}
