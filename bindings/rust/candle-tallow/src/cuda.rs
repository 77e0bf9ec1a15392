use std::os::raw::c_void;

use candle::backend::BackendStorage;
use candle::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop,
};
use candle::cuda_backend::CudaStorageSlice;
use candle::{CudaDevice, CudaStorage, Layout, Result, Shape, Storage};
use tallow::{Attention, DType, Tensor, TensorMut};

use crate::call::{strides, wrap, Call, Held, Lists};

/// A tensor, and what orders other streams after the work that reads it.
struct View<'a> {
    tensor: Tensor<'a>,
    _order: SyncOnDrop<'a>,
}

fn view_of<'a, T>(
    data: &'a CudaSlice<T>,
    dtype: DType,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<View<'a>> {
    let (first, order) = data.device_ptr(stream);
    let at = first as usize + layout.start_offset() * std::mem::size_of::<T>();
    // SAFETY: the layout lies inside the storage, which is borrowed until the call is queued and
    // freed in the order of its stream.
    let tensor =
        unsafe { Tensor::on_gpu(at as *const c_void, dtype, layout.dims(), &strides(layout)) };
    Ok(View { tensor: tensor.map_err(wrap)?, _order: order })
}

fn view<'a>(storage: &'a CudaStorage, layout: &Layout, stream: &'a CudaStream) -> Result<View<'a>> {
    match &storage.slice {
        CudaStorageSlice::F16(x) => view_of(x, DType::F16, layout, stream),
        CudaStorageSlice::BF16(x) => view_of(x, DType::Bf16, layout, stream),
        CudaStorageSlice::F32(x) => view_of(x, DType::F32, layout, stream),
        CudaStorageSlice::U32(x) => view_of(x, DType::I32, layout, stream),
        CudaStorageSlice::I32(x) => view_of(x, DType::I32, layout, stream),
        _ => candle::bail!("{:?}: must be f16, bf16, f32, u32 or i32", storage.dtype()),
    }
}

fn held<'a>(held: &'a Held<'_>, stream: &'a CudaStream) -> Result<View<'a>> {
    match &*held.0 {
        Storage::Cuda(storage) => view(storage, held.1, stream),
        _ => candle::bail!("a list of the call lies on the host: must lie on the GPU, as q does"),
    }
}

type Part<'a> = (&'a CudaStorage, &'a Layout);

/// Queues the call on the device's stream, with the scratch that it asks for.
fn attend(
    call: &Call,
    parts: [Part; 3],
    device: &CudaDevice,
    out: TensorMut,
    lse: Option<TensorMut>,
) -> Result<()> {
    let stream = device.cuda_stream();
    let [q, k, v] = parts;
    let held_lists = call.hold();
    let views: Lists<View> = held_lists.map(|list| held(list, &stream))?;
    let lists = views.map(|view| Ok(view.tensor))?;
    let q = view(q.0, q.1, &stream)?;
    let k = view(k.0, k.1, &stream)?;
    let v = view(v.0, v.1, &stream)?;
    let mut attention = call.apply(Attention::new(q.tensor, k.tensor, v.tensor, out), lists);
    if let Some(lse) = lse {
        attention = attention.lse(lse);
    }
    // SAFETY: the stream is the device's, and stays as long as the device.
    attention = unsafe { attention.stream(stream.cu_stream() as *mut c_void) };
    let bytes = attention.workspace_bytes().map_err(wrap)?;
    if bytes == 0 {
        return attention.run().map_err(wrap);
    }
    // SAFETY: scratch, written before it is read, and freed in the order of the stream.
    let mut scratch = unsafe { device.alloc::<u8>(bytes)? };
    let (memory, _order) = scratch.device_ptr_mut(&stream);
    let attention = unsafe { attention.workspace(memory as usize as *mut c_void, bytes) };
    attention.run().map_err(wrap)
}

/// Elements `at` and on of a slice, without gaps.
///
/// # Safety
///
/// They must lie in the slice, and nobody else may use them until the call is queued.
unsafe fn out_of<'a, T>(
    first: u64,
    at: usize,
    dtype: DType,
    shape: &[usize],
    _slice: std::marker::PhantomData<T>,
) -> Result<TensorMut<'a>> {
    let at = first as usize + at * std::mem::size_of::<T>();
    TensorMut::on_gpu(at as *mut c_void, dtype, shape, &[]).map_err(wrap)
}

/// Memory for out, of the type that `_like` holds, with the call's result in it.
fn run_as<T: DeviceRepr>(
    call: &Call,
    parts: [Part; 3],
    device: &CudaDevice,
    dtype: DType,
    _like: &CudaSlice<T>,
) -> Result<CudaSlice<T>> {
    let (out, _) = call.shapes(parts[0].1, parts[1].1, parts[2].1)?;
    let stream = device.cuda_stream();
    // SAFETY: the call writes every element.
    let mut memory = unsafe { device.alloc::<T>(out.iter().product())? };
    {
        let (first, _order) = memory.device_ptr_mut(&stream);
        // SAFETY: the memory is as large as the shape.
        let to = unsafe { out_of(first, 0, dtype, &out, std::marker::PhantomData::<T>)? };
        attend(call, parts, device, to, None)?;
    }
    Ok(memory)
}

fn run_with_lse(call: &Call, parts: [Part; 3], device: &CudaDevice) -> Result<CudaStorageSlice> {
    let (out, lse) = call.shapes(parts[0].1, parts[1].1, parts[2].1)?;
    let (count, rows): (usize, usize) = (out.iter().product(), lse.iter().product());
    let stream = device.cuda_stream();
    // SAFETY: the call writes every element.
    let mut memory = unsafe { device.alloc::<f32>(count + rows)? };
    {
        let (first, _order) = memory.device_ptr_mut(&stream);
        let f32s = std::marker::PhantomData::<f32>;
        // SAFETY: the memory is as large as both shapes, one behind the other.
        let to = unsafe { out_of(first, 0, DType::F32, &out, f32s)? };
        let lse = unsafe { out_of(first, count, DType::F32, &lse, f32s)? };
        attend(call, parts, device, to, Some(lse))?;
    }
    Ok(CudaStorageSlice::F32(memory))
}

pub(crate) fn run(call: &Call, q: Part, k: Part, v: Part) -> Result<(CudaStorage, Shape)> {
    let (out, lse) = call.shapes(q.1, k.1, v.1)?;
    let (device, parts) = (q.0.device().clone(), [q, k, v]);
    call.out_dtype(q.0.dtype())?;
    let slice = match &q.0.slice {
        _ if call.with_lse => run_with_lse(call, parts, &device)?,
        CudaStorageSlice::F16(x) => {
            CudaStorageSlice::F16(run_as(call, parts, &device, DType::F16, x)?)
        }
        CudaStorageSlice::BF16(x) => {
            CudaStorageSlice::BF16(run_as(call, parts, &device, DType::Bf16, x)?)
        }
        CudaStorageSlice::F32(x) => {
            CudaStorageSlice::F32(run_as(call, parts, &device, DType::F32, x)?)
        }
        _ => unreachable!("out_dtype refuses it"),
    };
    Ok((CudaStorage { slice, device }, call.result_shape(&out, &lse)))
}
