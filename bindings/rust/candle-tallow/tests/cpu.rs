//! candle-flash-attn's functions on CPU tensors, against plain loops.

use candle::{DType, Device, Result, Tensor};
use candle_tallow::*;

const D: usize = 8;
const SCALE: f32 = 0.5;

/// Rows, heads, D; in [-1, 1), no two alike.
fn values(rows: usize, heads: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..rows * heads * D).map(|_| next()).collect()
}

fn tensor(data: &[f32], shape: (usize, usize, usize)) -> Result<Tensor> {
    Tensor::from_vec(data.to_vec(), shape, &Device::Cpu)
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

struct Sequence<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    heads: usize,
    heads_kv: usize,
}

impl Sequence<'_> {
    /// Out (rows, heads, D) and log-sum-exp (rows, heads) over the keys that `sees` lets through.
    fn reference(&self, sees: impl Fn(i64, i64) -> bool) -> (Vec<f32>, Vec<f32>) {
        let (rows, keys) = (self.q.len() / self.heads / D, self.k.len() / self.heads_kv / D);
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for i in 0..rows {
            for head in 0..self.heads {
                let kv = |j: usize| (j * self.heads_kv + head * self.heads_kv / self.heads) * D;
                let q = &self.q[(i * self.heads + head) * D..][..D];
                let position = (i + keys) as i64 - rows as i64;
                let weight = |j: usize| -> f64 {
                    let dot: f64 =
                        (0..D).map(|c| f64::from(q[c]) * f64::from(self.k[kv(j) + c])).sum();
                    let seen = sees(position, j as i64);
                    if seen {
                        (f64::from(SCALE) * dot).exp()
                    } else {
                        0.0
                    }
                };
                let weights: Vec<f64> = (0..keys).map(weight).collect();
                let sum: f64 = weights.iter().sum();
                lse.push(sum.ln() as f32);
                out.extend((0..D).map(|c| {
                    let value = |j: usize| weights[j] * f64::from(self.v[kv(j) + c]);
                    ((0..keys).map(value).sum::<f64>() / sum) as f32
                }));
            }
        }
        (out, lse)
    }
}

fn assert_near(got: &[f32], expected: &[f32], most: f32) {
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= most, "element {i} is {g}, not {e}");
    }
}

#[test]
fn dense() -> Result<()> {
    let (q, k, v) = (values(5, 4, 1), values(9, 2, 2), values(9, 2, 3));
    let sequence = Sequence { q: &q, k: &k, v: &v, heads: 4, heads_kv: 2 };
    let shaped = |data, rows, heads| tensor(data, (rows, heads, D))?.reshape((1, rows, heads, D));
    let (q, k, v) = (shaped(&q, 5, 4)?, shaped(&k, 9, 2)?, shaped(&v, 9, 2)?);
    let (out, _) = sequence.reference(|i, j| j <= i);
    assert_near(&floats(&flash_attn(&q, &k, &v, SCALE, true)?)?, &out, 1e-5);
    let (out, _) = sequence.reference(|i, j| i - 2 <= j && j <= i + 1);
    let got = flash_attn_windowed(&q, &k, &v, SCALE, Some(2), Some(1))?;
    assert_near(&floats(&got)?, &out, 1e-5);
    let halves = [q, k, v].map(|x| x.to_dtype(DType::BF16));
    let [q, k, v] = halves;
    let got = flash_attn_windowed(&q?, &k?, &v?, SCALE, Some(2), Some(1))?;
    assert_eq!(got.dtype(), DType::BF16);
    assert_near(&floats(&got)?, &out, 2e-2);
    Ok(())
}

#[test]
fn dense_strides_and_lse() -> Result<()> {
    let (q, k, v) = (values(5, 4, 1), values(9, 2, 2), values(9, 2, 3));
    let sequence = Sequence { q: &q, k: &k, v: &v, heads: 4, heads_kv: 2 };
    let (out, lse) = sequence.reference(|i, j| j <= i);
    // Heads outside, as in models that transpose; k and v are the last rows of something longer.
    let outside = |data: &[f32], rows: usize, heads: usize| -> Result<Tensor> {
        let mut moved = vec![0.0; data.len()];
        for (i, x) in data.iter().enumerate() {
            let (row, head, c) = (i / heads / D, i / D % heads, i % D);
            moved[(head * rows + row) * D + c] = *x;
        }
        tensor(&moved, (heads, rows, D))?.reshape((1, heads, rows, D))?.transpose(1, 2)
    };
    let behind = |data: &[f32]| -> Result<Tensor> {
        let all = [&vec![f32::NAN; 3 * 2 * D][..], data].concat();
        Tensor::from_vec(all, (1, 12, 2, D), &Device::Cpu)?.narrow(1, 3, 9)
    };
    let (q, k, v) = (outside(&q, 5, 4)?, behind(&k)?, behind(&v)?);
    let (got, got_lse) = flash_attn_with_lse(&q, &k, &v, None, SCALE, None, Some(0), None)?;
    assert_near(&floats(&got)?, &out, 1e-5);
    assert_eq!(got_lse.dims(), &[1, 4, 5]);
    assert_near(&floats(&got_lse.transpose(1, 2)?)?, &lse, 1e-5);
    Ok(())
}

/// Two sequences of 3 and 4 queries, 6 and 4 keys.
struct Packed {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    seqlens: (Tensor, Tensor),
}

impl Packed {
    fn new() -> Result<Packed> {
        let starts = |ends: [u32; 3]| Tensor::from_vec(ends.to_vec(), 3, &Device::Cpu);
        let seqlens = (starts([0, 3, 7])?, starts([0, 6, 10])?);
        Ok(Packed { q: values(7, 2, 4), k: values(10, 1, 5), v: values(10, 1, 6), seqlens })
    }

    fn tensors(&self) -> Result<(Tensor, Tensor, Tensor)> {
        let kv = |data| tensor(data, (10, 1, D));
        Ok((tensor(&self.q, (7, 2, D))?, kv(&self.k)?, kv(&self.v)?))
    }

    fn reference(&self, sees: impl Fn(i64, i64) -> bool + Copy) -> (Vec<f32>, Vec<f32>) {
        let part = |q: std::ops::Range<usize>, k: std::ops::Range<usize>| {
            let (q, k) = (q.start * 2 * D..q.end * 2 * D, k.start * D..k.end * D);
            let (k, v) = (&self.k[k.clone()], &self.v[k]);
            Sequence { q: &self.q[q], k, v, heads: 2, heads_kv: 1 }.reference(sees)
        };
        let (a, b) = (part(0..3, 0..6), part(3..7, 6..10));
        ([a.0, b.0].concat(), [a.1, b.1].concat())
    }
}

#[test]
fn packed_causal() -> Result<()> {
    let packed = Packed::new()?;
    let ((q, k, v), (seqlens_q, seqlens_k)) = (packed.tensors()?, &packed.seqlens);
    let (out, lse) = packed.reference(|i, j| j <= i);
    let got = flash_attn_varlen(&q, &k, &v, seqlens_q, seqlens_k, 4, 6, SCALE, true)?;
    assert_near(&floats(&got)?, &out, 1e-5);
    let (got, got_lse) = flash_attn_varlen_with_lse(
        &q,
        &k,
        &v,
        None,
        seqlens_q,
        seqlens_k,
        4,
        6,
        SCALE,
        None,
        Some(0),
        None,
    )?;
    assert_near(&floats(&got)?, &out, 1e-5);
    assert_eq!(got_lse.dims(), &[2, 7]);
    assert_near(&floats(&got_lse.transpose(0, 1)?)?, &lse, 1e-5);
    Ok(())
}

#[test]
fn paged_with_a_prefix() -> Result<()> {
    let packed = Packed::new()?;
    let ((q, _, _), (seqlens_q, seqlens_k)) = (packed.tensors()?, &packed.seqlens);
    let (out, _) = packed
        .reference(|i, j| (i - 1 <= j && j <= i) || ((1..5).contains(&i) && (1..5).contains(&j)));
    // Pages of 4: the first sequence's are 2 and 0, the second's is 1.
    let pages = |rows: &[f32]| {
        let mut pages = vec![f32::NAN; 3 * 4 * D];
        for (page, from, count) in [(2, 0, 4), (0, 4, 2), (1, 6, 4)] {
            let to = page * 4 * D;
            pages[to..to + count * D].copy_from_slice(&rows[from * D..(from + count) * D]);
        }
        Tensor::from_vec(pages, (3, 4, 1, D), &Device::Cpu)
    };
    let (k, v) = (pages(&packed.k)?, pages(&packed.v)?);
    let table = Tensor::from_vec(vec![2u32, 0, 1, u32::MAX], (2, 2), &Device::Cpu)?;
    let ranges = Tensor::from_vec(vec![1i32, 5, 1, 5], (2, 1, 2), &Device::Cpu)?;
    let call = |page_block_size| {
        flash_attn_varlen_paged_windowed(
            &q,
            &k,
            &v,
            seqlens_q,
            seqlens_k,
            &table,
            Some(&ranges),
            4,
            6,
            SCALE,
            Some(1),
            Some(0),
            page_block_size,
            None,
        )
    };
    assert_near(&floats(&call(4)?)?, &out, 1e-5);
    let error = call(8).unwrap_err().to_string();
    assert!(error.contains("page_block_size 8"), "{error}");
    Ok(())
}

/// The first channel of each head and row, as candle publishes them for its own test.
#[test]
fn published_values() -> Result<()> {
    let x = |divisor: f32| {
        let data: Vec<f32> = (0..48).map(|i| i as f32 / divisor).collect();
        Tensor::from_vec(data, (1, 3, 2, 8), &Device::Cpu)?.to_dtype(DType::F16)?.transpose(1, 2)
    };
    let got = floats(&flash_attn(&x(30.)?, &x(40.)?, &x(50.)?, 0.5, false)?.transpose(1, 2)?)?;
    let first: Vec<f32> = got.iter().step_by(8).copied().collect();
    assert_near(&first, &[0.0837, 0.0922, 0.4204, 0.4280, 0.7554, 0.7622], 6e-4);
    Ok(())
}

#[test]
fn errors() -> Result<()> {
    let packed = Packed::new()?;
    let ((q, k, v), (seqlens_q, seqlens_k)) = (packed.tensors()?, &packed.seqlens);
    let words = |result: Result<Tensor>| result.unwrap_err().to_string();
    let error = words(flash_attn(&q, &k, &v, SCALE, true));
    assert!(error.contains("must have 4, 4 and 4 dimensions"), "{error}");
    let error = words(flash_attn_varlen(&q, &k, &v, seqlens_q, seqlens_k, 4, 5, SCALE, true));
    assert!(error.contains("max_seqlen_k = 5"), "{error}");
    let long = Tensor::from_vec(vec![0i64, 3, 7], 3, &Device::Cpu)?;
    let error = words(flash_attn_varlen(&q, &k, &v, &long, seqlens_k, 4, 6, SCALE, true));
    assert!(error.contains("must be f16, bf16, f32, u32 or i32"), "{error}");
    let narrow = |x: &Tensor| x.narrow(2, 0, 4);
    let (q, k, v) = (narrow(&q)?, narrow(&k)?, narrow(&v)?);
    let error = words(flash_attn_varlen(&q, &k, &v, seqlens_q, seqlens_k, 4, 6, SCALE, true));
    assert!(error.contains("head_dim"), "{error}");
    Ok(())
}
