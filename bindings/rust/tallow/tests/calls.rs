//! Calls through the safe crate, on the CPU, beside plain loops in f64.

use tallow::{
    merge, Attention, Bf16, DType, Precision, Rotary, RotaryEmbedding, Status, Tensor, TensorMut,
};

const HEADS: usize = 4;
const HEADS_KV: usize = 2;
const DIM: usize = 16;

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// One sequence; `sees(i, j)` is the mask. Returns out and lse.
fn plain(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    sees: impl Fn(usize, usize) -> bool,
) -> (Vec<f64>, Vec<f64>) {
    let (rows, keys) = (q.len() / HEADS / DIM, k.len() / HEADS_KV / DIM);
    let mut out = vec![0.0; q.len()];
    let mut lse = vec![f64::NEG_INFINITY; HEADS * rows];
    for i in 0..rows {
        for h in 0..HEADS {
            let head_kv = h / (HEADS / HEADS_KV);
            let at = |j: usize, c: usize| (j * HEADS_KV + head_kv) * DIM + c;
            let weights: Vec<f64> = (0..keys)
                .map(|j| {
                    let row = (i * HEADS + h) * DIM;
                    let dot: f64 = (0..DIM).map(|c| q[row + c] as f64 * k[at(j, c)] as f64).sum();
                    if sees(i, j) {
                        (dot / (DIM as f64).sqrt()).exp()
                    } else {
                        0.0
                    }
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            lse[h * rows + i] = sum.ln();
            for c in 0..DIM {
                let total: f64 = (0..keys).map(|j| weights[j] * v[at(j, c)] as f64).sum();
                out[(i * HEADS + h) * DIM + c] = if sum > 0.0 { total / sum } else { 0.0 };
            }
        }
    }
    (out, lse)
}

fn assert_near(got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        assert!((g as f64 - e).abs() < 1e-5, "element {i} is {g}, not {e}");
    }
}

#[test]
fn dense_causal_with_lse() {
    let (q, k, v) = (numbers(5 * 64, 1), numbers(9 * 32, 2), numbers(9 * 32, 3));
    let (mut out, mut lse) = (vec![0f32; q.len()], vec![0f32; HEADS * 5]);
    let call = Attention::new(
        Tensor::new(&q, &[1, 5, HEADS, DIM]).unwrap(),
        Tensor::new(&k, &[1, 9, HEADS_KV, DIM]).unwrap(),
        Tensor::new(&v, &[1, 9, HEADS_KV, DIM]).unwrap(),
        TensorMut::new(&mut out, &[1, 5, HEADS, DIM]).unwrap(),
    )
    .lse(TensorMut::new(&mut lse, &[1, HEADS, 5]).unwrap())
    .causal()
    .precision(Precision::High);
    assert!(call.describe().unwrap().contains("cpu"));
    call.prepare().unwrap();
    call.run().unwrap();
    let (expected, expected_lse) = plain(&q, &k, &v, |i, j| j <= i + 4);
    assert_near(&out, &expected);
    assert_near(&lse, &expected_lse);
}

#[test]
fn packed_window() {
    let (q, k, v) = (numbers(7 * 64, 4), numbers(11 * 32, 5), numbers(11 * 32, 6));
    let (cu_q, cu_k) = ([0, 3, 7], [0, 6, 11]);
    let mut out = vec![0f32; q.len()];
    Attention::new(
        Tensor::new(&q, &[7, HEADS, DIM]).unwrap(),
        Tensor::new(&k, &[11, HEADS_KV, DIM]).unwrap(),
        Tensor::new(&v, &[11, HEADS_KV, DIM]).unwrap(),
        TensorMut::new(&mut out, &[7, HEADS, DIM]).unwrap(),
    )
    .cu_seqlens_q(Tensor::new(&cu_q, &[3]).unwrap())
    .cu_seqlens_k(Tensor::new(&cu_k, &[3]).unwrap())
    .window(Some(2), None)
    .run()
    .unwrap();
    let first = plain(&q[..3 * 64], &k[..6 * 32], &v[..6 * 32], |i, j| j + 2 >= i + 3).0;
    let second = plain(&q[3 * 64..], &k[6 * 32..], &v[6 * 32..], |i, j| j + 2 > i).0;
    assert_near(&out[..3 * 64], &first);
    assert_near(&out[3 * 64..], &second);
}

#[test]
fn appending_to_pages_with_rotary() {
    let (q, mut k, mut v) = (numbers(64, 7), numbers(6 * 2 * 32, 8), numbers(6 * 2 * 32, 9));
    let (k_new, v_new) = (numbers(32, 10), numbers(32, 11));
    let (table, used) = ([4, 1, 3], [5]);
    let mut out = vec![0f32; q.len()];
    let mut keys: Vec<f32> = Vec::new();
    let mut values: Vec<f32> = Vec::new();
    for j in 0..5 {
        let row = (table[j / 2] as usize * 2 + j % 2) * 32;
        keys.extend(&k[row..row + 32]);
        values.extend(&v[row..row + 32]);
    }
    Attention::appending(
        Tensor::new(&q, &[1, 1, HEADS, DIM]).unwrap(),
        TensorMut::new(&mut k, &[6, 2, HEADS_KV, DIM]).unwrap(),
        TensorMut::new(&mut v, &[6, 2, HEADS_KV, DIM]).unwrap(),
        Tensor::new(&k_new, &[1, 1, HEADS_KV, DIM]).unwrap(),
        Tensor::new(&v_new, &[1, 1, HEADS_KV, DIM]).unwrap(),
        Tensor::new(&used, &[1]).unwrap(),
        TensorMut::new(&mut out, &[1, 1, HEADS, DIM]).unwrap(),
    )
    .block_table(Tensor::new(&table, &[1, 3]).unwrap())
    .rotary(Rotary::new(DIM, 10000.0))
    .run()
    .unwrap();
    let rotate = |x: &[f32], heads: usize| {
        let (mut turned, at) = (vec![0f32; x.len()], [5i32]);
        RotaryEmbedding::new(
            Tensor::new(x, &[1, 1, heads, DIM]).unwrap(),
            TensorMut::new(&mut turned, &[1, 1, heads, DIM]).unwrap(),
            Rotary::new(DIM, 10000.0),
        )
        .positions(Tensor::new(&at, &[1, 1]).unwrap())
        .run()
        .unwrap();
        turned
    };
    keys.extend(rotate(&k_new, HEADS_KV));
    values.extend(&v_new);
    assert_near(&out, &plain(&rotate(&q, HEADS), &keys, &values, |_, _| true).0);
    assert_eq!(&v[(3 * 2 + 1) * 32..][..32], &v_new[..], "the new row lies in page 3");
}

#[test]
fn rotary_turns_in_place_and_interrupts_nothing_behind() {
    let mut x = vec![1f32, 0.0, 0.0, 0.0, 7.0, 0.0, 0.0, 0.0];
    let offset = [3i32];
    RotaryEmbedding::in_place(
        TensorMut::new(&mut x, &[1, 1, 1, 8]).unwrap(),
        Rotary::new(4, 100.0),
    )
    .offset(Tensor::new(&offset, &[1]).unwrap())
    .run()
    .unwrap();
    assert!((x[0] - 3f32.cos()).abs() < 1e-6 && (x[2] - 3f32.sin()).abs() < 1e-6);
    assert_eq!(x[4], 7.0);
}

#[test]
fn halves_merge() {
    let (q, k, v) = (numbers(3 * 64, 12), numbers(8 * 32, 13), numbers(8 * 32, 14));
    let half = |from: usize, to: usize| {
        let (mut out, mut lse) = (vec![0f32; q.len()], vec![0f32; HEADS * 3]);
        let shape = [1, to - from, HEADS_KV, DIM];
        Attention::new(
            Tensor::new(&q, &[1, 3, HEADS, DIM]).unwrap(),
            Tensor::new(&k[from * 32..to * 32], &shape).unwrap(),
            Tensor::new(&v[from * 32..to * 32], &shape).unwrap(),
            TensorMut::new(&mut out, &[1, 3, HEADS, DIM]).unwrap(),
        )
        .lse(TensorMut::new(&mut lse, &[1, HEADS, 3]).unwrap())
        .run()
        .unwrap();
        (out, lse)
    };
    let (a, b) = (half(0, 5), half(5, 8));
    let mut out = vec![0f32; q.len()];
    merge(
        (
            Tensor::new(&a.0, &[1, 3, HEADS, DIM]).unwrap(),
            Tensor::new(&a.1, &[1, HEADS, 3]).unwrap(),
        ),
        (
            Tensor::new(&b.0, &[1, 3, HEADS, DIM]).unwrap(),
            Tensor::new(&b.1, &[1, HEADS, 3]).unwrap(),
        ),
        TensorMut::new(&mut out, &[1, 3, HEADS, DIM]).unwrap(),
        None,
    )
    .unwrap();
    assert_near(&out, &plain(&q, &k, &v, |_, _| true).0);
}

#[test]
fn errors_name_the_field() {
    let (q, k) = (vec![Bf16(0); 64], vec![0f32; 64]);
    let mut out = vec![Bf16(0); 64];
    let error = Attention::new(
        Tensor::new(&q, &[1, 1, 4, 16]).unwrap(),
        Tensor::new(&k, &[1, 1, 4, 16]).unwrap(),
        Tensor::new(&k, &[1, 1, 4, 16]).unwrap(),
        TensorMut::new(&mut out, &[1, 1, 4, 16]).unwrap(),
    )
    .run()
    .unwrap_err();
    assert_eq!(error.status, Status::InvalidArgument);
    assert!(error.to_string().contains("k.dtype"), "{error}");
}

#[test]
fn tensors_stay_inside_their_slices() {
    let x = [0f32; 24];
    assert!(Tensor::new(&x, &[2, 3, 4]).is_ok());
    assert!(Tensor::new(&x, &[2, 3, 5]).is_err());
    assert!(Tensor::strided(&x, &[3, 4], &[10, 1]).is_ok());
    assert!(Tensor::strided(&x, &[3, 5], &[10, 1]).is_err());
    assert!(Tensor::strided(&x, &[2, 4], &[-4, 1]).is_err());
    assert!(Tensor::strided(&x, &[2, 4], &[4]).is_err());
    assert!(Tensor::strided(&x, &[99, 4], &[0, 1]).is_ok(), "broadcast");
    assert!(Tensor::strided(&x, &[99, 4], &[0, 0]).is_err());
    assert!(Tensor::strided(&x, &[usize::MAX; 3], &[i64::MAX; 3]).is_err());
    assert!(Tensor::new(&x, &[1, 1, 1, 1, 24]).is_err());
    assert!(Tensor::new(&x, &[usize::MAX, 0]).is_ok());
}

#[test]
fn devices_do_not_mix() {
    let k = vec![0f32; 16];
    let mut out = vec![0f32; 16];
    let host = |x| Tensor::new(x, &[1, 1, 1, 16]).unwrap();
    // SAFETY: the call is refused before it looks at the memory.
    let q = unsafe { Tensor::on_gpu(64 as *const _, DType::F32, &[1, 1, 1, 16], &[]) }.unwrap();
    let to = TensorMut::new(&mut out, &[1, 1, 1, 16]).unwrap();
    let error = Attention::new(q, host(&k), host(&k), to).run().unwrap_err();
    assert!(error.message.contains("must lie on a GPU"), "{error}");
}

#[test]
fn the_system_describes_itself() {
    assert!(tallow::system().unwrap().contains("cpu_level"));
    assert!(tallow::version() > 0);
}
