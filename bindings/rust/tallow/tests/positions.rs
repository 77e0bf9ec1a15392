//! The test of a model's rotary tables that docs/candle.md shows, tried on tables that are right
//! and on tables whose positions went through bf16.

use tallow::{Rotary, RotaryEmbedding, Tensor, TensorMut};

/// The first position whose cosines or sines are off by more than 16-bit tables must be. Tables
/// are `(positions, rotary_dim / 2)`.
fn first_wrong_position(
    cos: &[Vec<f32>],
    sin: &[Vec<f32>],
    theta: f64,
) -> tallow::Result<Option<usize>> {
    let (positions, half) = (cos.len(), cos[0].len());
    // Rotating (1, 0) gives (cos, sin).
    let mut x = vec![0f32; positions * 2 * half];
    for row in x.chunks_mut(2 * half) {
        row[..half].fill(1.0);
    }
    let shape = [1, positions, 1, 2 * half];
    RotaryEmbedding::in_place(TensorMut::new(&mut x, &shape)?, Rotary::new(2 * half, theta))
        .run()?;
    Ok((0..positions).find(|&p| {
        let exact = &x[p * 2 * half..][..2 * half];
        let given = cos[p].iter().chain(&sin[p]);
        given.zip(exact).any(|(given, exact)| (given - exact).abs() > 0.005)
    }))
}

fn bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

const THETA: f64 = 1e6;
const HALF: usize = 64;

type Table = Vec<Vec<f32>>;

/// Tables whose angles are rounded as `through` says, and whose entries are bf16.
fn tables(positions: usize, through: fn(f32) -> f32) -> (Table, Table) {
    let frequency = |i: usize| through(THETA.powf(-(i as f64) / HALF as f64) as f32);
    let table = |f: fn(f32) -> f32| {
        (0..positions)
            .map(|p| {
                (0..HALF).map(|i| bf16(f(through(through(p as f32) * frequency(i))))).collect()
            })
            .collect()
    };
    (table(f32::cos), table(f32::sin))
}

#[test]
fn tables_from_f32_angles_pass() {
    let (cos, sin) = tables(4096, |x| x);
    assert_eq!(first_wrong_position(&cos, &sin, THETA).unwrap(), None);
}

#[test]
fn tables_from_bf16_positions_fail_early() {
    let (cos, sin) = tables(4096, bf16);
    let wrong = first_wrong_position(&cos, &sin, THETA).unwrap();
    assert!(wrong.map_or(false, |p| p < 300), "{wrong:?}");
    assert_eq!(bf16(257.0), 256.0, "neighbours share a position");
}

#[test]
fn a_longer_text_is_another_position() {
    let x = vec![1f32; 16];
    let turn = |position: i32| {
        let (mut out, at) = (vec![0f32; 16], [position]);
        RotaryEmbedding::new(
            Tensor::new(&x, &[1, 1, 1, 16]).unwrap(),
            TensorMut::new(&mut out, &[1, 1, 1, 16]).unwrap(),
            Rotary::new(16, THETA),
        )
        .positions(Tensor::new(&at, &[1, 1]).unwrap())
        .run()
        .unwrap();
        out
    };
    assert_ne!(turn(1_000_000), turn(1_000_001));
}
