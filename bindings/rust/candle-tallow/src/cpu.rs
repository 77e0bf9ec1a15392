use candle::backend::BackendStorage;
use candle::{CpuStorage, DType, Layout, Result, Shape, Storage};
use tallow::{Attention, Bf16, Tensor, TensorMut, F16};

use crate::call::{strides, wrap, Call, Held};

/// The same memory as elements of another type.
///
/// # Safety
///
/// `U` must have the size and the alignment of `T`, and be valid with any bits.
unsafe fn cast<T, U>(data: &[T]) -> &[U] {
    std::slice::from_raw_parts(data.as_ptr() as *const U, data.len())
}

/// # Safety
///
/// As of [`cast`].
unsafe fn cast_mut<T, U>(data: &mut [T]) -> &mut [U] {
    std::slice::from_raw_parts_mut(data.as_mut_ptr() as *mut U, data.len())
}

fn view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Tensor<'a>> {
    let (at, dims, strides) = (layout.start_offset(), layout.dims(), strides(layout));
    // SAFETY: half's f16 and bf16 are a u16 each; u32 is as large as i32.
    let tensor = unsafe {
        match storage {
            CpuStorage::F16(x) => Tensor::strided(cast::<_, F16>(&x[at..]), dims, &strides),
            CpuStorage::BF16(x) => Tensor::strided(cast::<_, Bf16>(&x[at..]), dims, &strides),
            CpuStorage::F32(x) => Tensor::strided(&x[at..], dims, &strides),
            CpuStorage::U32(x) => Tensor::strided(cast::<_, i32>(&x[at..]), dims, &strides),
            CpuStorage::I32(x) => Tensor::strided(&x[at..], dims, &strides),
            other => candle::bail!("{:?}: must be f16, bf16, f32, u32 or i32", other.dtype()),
        }
    };
    tensor.map_err(wrap)
}

fn held<'a>(held: &'a Held<'_>) -> Result<Tensor<'a>> {
    match &*held.0 {
        Storage::Cpu(storage) => view(storage, held.1),
        _ => candle::bail!("a list of the call lies on a GPU: must lie on the CPU, as q does"),
    }
}

type Part<'a> = (&'a CpuStorage, &'a Layout);

fn attend<'a>(
    call: &Call,
    parts: [Part<'a>; 3],
    out: TensorMut<'a>,
    lse: Option<TensorMut<'a>>,
) -> Result<()> {
    let [q, k, v] = parts;
    let lists = call.hold();
    let lists = lists.map(held)?;
    let attention = Attention::new(view(q.0, q.1)?, view(k.0, k.1)?, view(v.0, v.1)?, out);
    let attention = call.apply(attention, lists);
    match lse {
        Some(lse) => attention.lse(lse).run().map_err(wrap),
        None => attention.run().map_err(wrap),
    }
}

pub(crate) fn run(call: &Call, q: Part, k: Part, v: Part) -> Result<(CpuStorage, Shape)> {
    let (out, lse) = call.shapes(q.1, k.1, v.1)?;
    let (count, rows): (usize, usize) = (out.iter().product(), lse.iter().product());
    let shape = call.result_shape(&out, &lse);
    let parts = [q, k, v];
    if call.with_lse {
        call.out_dtype(q.0.dtype())?;
        let mut both = vec![0f32; count + rows];
        let (out_data, lse_data) = both.split_at_mut(count);
        let to = TensorMut::new(out_data, &out).map_err(wrap)?;
        let lse = TensorMut::new(lse_data, &lse).map_err(wrap)?;
        attend(call, parts, to, Some(lse))?;
        return Ok((CpuStorage::F32(both), shape));
    }
    let mut storage = match call.out_dtype(q.0.dtype())? {
        DType::F16 => CpuStorage::F16(vec![Default::default(); count]),
        DType::BF16 => CpuStorage::BF16(vec![Default::default(); count]),
        _ => CpuStorage::F32(vec![0.0; count]),
    };
    // SAFETY: as in view.
    let to = unsafe {
        match &mut storage {
            CpuStorage::F16(x) => TensorMut::new(cast_mut::<_, F16>(x), &out),
            CpuStorage::BF16(x) => TensorMut::new(cast_mut::<_, Bf16>(x), &out),
            CpuStorage::F32(x) => TensorMut::new(x, &out),
            _ => unreachable!("made above"),
        }
    };
    attend(call, parts, to.map_err(wrap)?, None)?;
    Ok((storage, shape))
}
