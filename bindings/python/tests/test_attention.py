"""tallow.attention on numpy arrays, every option, against f64."""

import numpy as np
import pytest
from reference import attend, keep_mask, rotate, visible

import tallow

bf16 = pytest.importorskip("ml_dtypes").bfloat16
# Relative L2 error that each dtype's own rounding of inputs, weights and output explains.
CLOSE = {np.dtype(np.float32): 2e-6, np.dtype(np.float16): 2e-3, np.dtype(bf16): 1e-2}


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def qkv(rng, batch=2, sq=9, sk=14, heads=4, heads_kv=2, d=32, dv=None, dtype=np.float32):
    return (
        normal(rng, batch, sq, heads, d, dtype=dtype),
        normal(rng, batch, sk, heads_kv, d, dtype=dtype),
        normal(rng, batch, sk, heads_kv, dv or d, dtype=dtype),
    )


def assert_close(found, wanted, tolerance=None):
    error = np.linalg.norm(found.astype(np.float64) - wanted)
    assert found.shape == wanted.shape
    assert error <= (tolerance or CLOSE[found.dtype]) * max(np.linalg.norm(wanted), 1e-30)


def check_dense(q, k, v, out, lse, per_sequence):
    """Compares with the reference, sequence by sequence; per_sequence(b) gives its options."""
    for b in range(q.shape[0]):
        wanted, wanted_lse = attend(q[b], k[b], v[b], **per_sequence(b))
        assert_close(out[b], wanted)
        np.testing.assert_allclose(lse[b], wanted_lse, rtol=1e-5, atol=2e-5)


MASKS = {
    "none": ({}, {}),
    "causal": ({"causal": True}, {"right": 0}),
    "window": ({"window": (3, 2)}, {"left": 3, "right": 2}),
    "left": ({"window": (4, -1)}, {"left": 4}),
    "causal window": ({"causal": True, "window": (5, -1)}, {"left": 5, "right": 0}),
}


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"sq": 14, "sk": 6},
        {"sq": 1, "d": 64},
        {"d": 72, "dv": 16},
        {"sk": 0},
        {"sq": 0},
        {"batch": 0},
    ],
    ids=str,
)
def test_masks_shapes_and_dtypes(rng, mask, shape, dtype):
    given, wanted = MASKS[mask]
    q, k, v = qkv(rng, dtype=dtype, **shape)
    out, lse = tallow.attention(q, k, v, return_lse=True, **given)
    assert out.dtype == dtype and lse.dtype == np.float32
    check_dense(q, k, v, out, lse, lambda b: {"seen": visible(q.shape[1], k.shape[1], **wanted)})


@pytest.mark.parametrize(
    "name, given",
    {
        "scale": {"softmax_scale": 0.3},
        "softcap": {"softcap": 1.5},
        "alibi": {"alibi_slopes": np.float32([0.5, 0.25, 0.1, 1])},
        "alibi per sequence": {"alibi_slopes": np.float32([[0.5, 0.25, 0.1, 1], [1, 2, 0, 0.1]])},
        "sinks": {"sinks": np.float32([0, 1, -2, 4])},
        "all": {
            "softmax_scale": 0.3,
            "softcap": 1.5,
            "sinks": np.float32([0, 1, -2, 4]),
            "alibi_slopes": np.float32([0.5, 0.25, 0.1, 1]),
        },
    }.items(),
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_scores(rng, name, given):
    q, k, v = qkv(rng)
    out, lse = tallow.attention(q, k, v, causal=True, return_lse=True, **given)
    slopes = given.get("alibi_slopes")
    check_dense(
        q,
        k,
        v,
        out,
        lse,
        lambda b: {
            "seen": visible(9, 14, right=0),
            "scale": given.get("softmax_scale"),
            "softcap": given.get("softcap", 0),
            "sinks": given.get("sinks"),
            "slopes": slopes[b] if slopes is not None and slopes.ndim == 2 else slopes,
        },
    )


def test_prefix_ranges(rng):
    q, k, v = qkv(rng)
    ranges = np.int32([[[2, 9], [10, 14]], [[5, 12], [7, 7]]])
    out, lse = tallow.attention(q, k, v, causal=True, prefix_ranges=ranges, return_lse=True)
    check_dense(
        q, k, v, out, lse, lambda b: {"seen": visible(9, 14, right=0, ranges=ranges[b].tolist())}
    )


def test_dropout(rng):
    q, k, v = qkv(rng, sq=5, sk=9)
    given = {"dropout_p": 0.4, "dropout_seed": 2**40 + 17, "dropout_offset": 2**33 + 5}
    out, lse = tallow.attention(q, k, v, return_lse=True, **given)
    check_dense(
        q,
        k,
        v,
        out,
        lse,
        lambda b: {
            "seen": visible(5, 9),
            "p_drop": 0.4,
            "keep": keep_mask(0.4, 2**40 + 17, 2**33 + 5, b, 4, 5, 9),
        },
    )


STARTS_Q, STARTS_K = np.int32([0, 5, 5, 12]), np.int32([0, 3, 9, 20])


def test_packed(rng):
    q, k, v = (normal(rng, n, h, 32) for n, h in ((12, 4), (20, 2), (20, 2)))
    out, lse = tallow.attention(
        q,
        k,
        v,
        cu_seqlens_q=STARTS_Q,
        cu_seqlens_k=STARTS_K,
        causal=True,
        max_seqlen_q=7,
        max_seqlen_k=11,
        return_lse=True,
    )
    for (a, b), (c, d) in zip(zip(STARTS_Q, STARTS_Q[1:]), zip(STARTS_K, STARTS_K[1:])):
        wanted, wanted_lse = attend(q[a:b], k[c:d], v[c:d], visible(b - a, d - c, right=0))
        assert_close(out[a:b], wanted)
        np.testing.assert_allclose(lse[:, a:b], wanted_lse, rtol=1e-5, atol=1e-5)


def test_seqused_leftpad_and_batch_index(rng):
    q, _, _ = qkv(rng)
    _, k, v = qkv(rng, batch=5)
    rows, used, pad = np.int32([3, 1]), np.int32([11, 14]), np.int32([2, 0])
    out = tallow.attention(
        q, k, v, cache_batch_idx=rows, seqused_k=used, leftpad_k=pad, window=(6, 0)
    )
    for b in range(2):
        keys = slice(pad[b], used[b])
        wanted, _ = attend(
            q[b], k[rows[b], keys], v[rows[b], keys], visible(9, used[b] - pad[b], left=6, right=0)
        )
        assert_close(out[b], wanted)


def paged(rng, k, v, page_size):
    """Pages of a dense k and v in random order, and their table."""
    batch, rows = k.shape[:2]
    columns = -(-rows // page_size)
    table = rng.permutation(batch * columns).astype(np.int32).reshape(batch, columns)
    pages = [np.zeros((batch * columns, page_size, *x.shape[2:]), x.dtype) for x in (k, v)]
    for b in range(batch):
        for j in range(rows):
            for page, x in zip(pages, (k, v)):
                page[table[b, j // page_size], j % page_size] = x[b, j]
    return *pages, table


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_pages(rng, page_size):
    q, k, v = qkv(rng)
    k_pages, v_pages, table = paged(rng, k, v, page_size)
    out, lse = tallow.attention(
        q,
        k_pages,
        v_pages,
        block_table=table,
        causal=True,
        seqused_k=np.int32([14, 14]),
        return_lse=True,
    )
    check_dense(q, k, v, out, lse, lambda b: {"seen": visible(9, 14, right=0)})


@pytest.mark.parametrize("layout", ["dense", "paged"])
@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"theta": 1e6},
        {"rotary_dim": 16, "pairing": "interleaved"},
        {"inv_freq": np.float32(np.linspace(1, 0.01, 16))},
        {"attention_factor": 1.3},
        {"mrope": "chunked", "mrope_sections": (6, 5, 5)},
        {"mrope": "interleaved", "mrope_sections": (6, 5, 5)},
    ],
    ids=str,
)
def test_kv_cache_step(rng, layout, given):
    """Append, rotate, attend, on dense and paged caches; positions given and implied."""
    q, k, v = qkv(rng, sq=3)
    _, k_new, v_new = qkv(rng, sk=3)
    used = np.int32([4, 9])
    rows = np.stack([used + t for t in range(3)], 1)
    mrope = given is not None and "mrope" in given
    positions = np.stack([rows, rows + 1, 2 * rows]).astype(np.int64)
    options = {} if given is None else {"rotary": tallow.Rotary(**given)}
    if mrope:
        options |= {"positions_q": positions, "positions_k_new": positions}
    k_all, v_all, table = (k.copy(), v.copy(), None) if layout == "dense" else paged(rng, k, v, 5)
    out = tallow.kv_cache_step(q, k_all, v_all, k_new, v_new, used, block_table=table, **options)
    names = {"rotary_dim": "dim", "attention_factor": "factor", "mrope_sections": "sections"}
    plain = {names.get(n, n): x for n, x in (given or {}).items() if n != "pairing"}
    plain["interleaved"] = (given or {}).get("pairing") == "interleaved"
    for b in range(2):
        at = positions[:, b] if mrope else rows[b]
        turn = (lambda x: x) if given is None else (lambda x: rotate(x, at, **plain))  # noqa: B023
        n = used[b] + 3
        keys = np.concatenate([k[b, : used[b]], turn(k_new[b])])
        values = np.concatenate([v[b, : used[b]], v_new[b]])
        wanted, _ = attend(turn(q[b]), keys, values, visible(3, n, right=0))
        assert_close(out[b], wanted)
        in_cache = (
            k_all[b, :n]
            if layout == "dense"
            else np.stack([k_all[table[b, j // 5], j % 5] for j in range(n)])
        )
        assert_close(in_cache, keys)


def test_packed_append(rng):
    q, k, v = qkv(rng, sq=3)
    starts = np.int32([0, 2, 3])
    q_packed, k_new, v_new = normal(rng, 3, 4, 32), normal(rng, 3, 2, 32), normal(rng, 3, 2, 32)
    k_all, v_all, used = k.copy(), v.copy(), np.int32([4, 9])
    out = tallow.attention(
        q_packed,
        k_all,
        v_all,
        k_new=k_new,
        v_new=v_new,
        seqused_k=used,
        cu_seqlens_q=starts,
        cu_seqlens_k_new=starts,
        causal=True,
        rotary=tallow.Rotary(),
        positions_q=np.int32([40, 41, 7]),
        positions_k_new=np.int32([40, 41, 7]),
    )
    positions = [[40, 41], [7]]
    for b in range(2):
        new = slice(starts[b], starts[b + 1])
        keys = np.concatenate([k[b, : used[b]], rotate(k_new[new], positions[b])])
        values = np.concatenate([v[b, : used[b]], v_new[new]])
        wanted, _ = attend(
            rotate(q_packed[new], positions[b]),
            keys,
            values,
            visible(starts[b + 1] - starts[b], len(keys), right=0),
        )
        assert_close(out[new], wanted)


@pytest.mark.parametrize(
    "given",
    [
        {"num_splits": 3},
        {"precision": "fast"},
        {"precision": "high"},
        {"batch_invariant": True},
        {"threads": 1},
    ],
    ids=str,
)
def test_how_to_compute(rng, given):
    q, k, v = qkv(rng, sk=300)
    out, lse = tallow.attention(q, k, v, return_lse=True, **given)
    check_dense(q, k, v, out, lse, lambda b: {"seen": visible(9, 300)})


def test_how_to_compute_reaches_the_plan(rng):
    q, k, v = qkv(rng, sq=1, sk=4096)
    assert tallow.describe(q, k, v, num_splits=3)["splits"] == "3"
    assert tallow.describe(q, k, v, threads=1)["threads"] == "1"
    assert tallow.describe(q, k, v)["backend"] == "cpu"
    with pytest.raises(TypeError, match="causl is no keyword"):
        tallow.describe(q, k, v, causl=True)
    tallow.prepare(q, k, v, causal=True)


def test_out_lse_and_workspace_are_used(rng):
    q, k, v = qkv(rng, dtype=np.float16)
    out, lse = np.empty((2, 9, 4, 32), np.float32), np.empty((2, 4, 9), np.float32)
    memory = np.empty(1 << 20, np.uint8)
    workspace = memory[-memory.ctypes.data % 256 :]
    found = tallow.attention(q, k, v, out=out, lse=lse, return_lse=True, workspace=workspace)
    assert found[0] is out and found[1] is lse
    check_dense(q, k, v, out, lse, lambda b: {"seen": visible(9, 14)})


def test_strides_are_taken_as_they_are(rng):
    """Packed qkv, a transpose, a reversed batch: views, none of them copied."""
    packed = normal(rng, 2, 9, 3, 4, 32)
    q, k, v = packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]
    check_dense(
        q, k, v, *tallow.attention(q, k, v, return_lse=True), lambda b: {"seen": visible(9, 9)}
    )
    q = normal(rng, 2, 4, 9, 32).transpose(0, 2, 1, 3)[::-1]
    out = np.zeros((2, 4, 9, 32), np.float32).transpose(0, 2, 1, 3)
    tallow.attention(q, k, v, out=out)
    for b in range(2):
        assert_close(out[b], attend(q[b], k[b], v[b], visible(9, 9))[0])


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_merge(rng, dtype):
    q, k, v = qkv(rng, dtype=dtype)
    parts = [
        tallow.attention(q, k[:, s], v[:, s], return_lse=True) for s in (slice(0, 5), slice(5, 14))
    ]
    out, lse = tallow.merge(*parts[0], *parts[1], return_lse=True)
    assert tallow.merge(*parts[0], *parts[1]).tobytes() == out.tobytes()
    check_dense(q, k, v, out, lse, lambda b: {"seen": visible(9, 14)})


ROTARY = [
    ({}, {}),
    ({"theta": 1e6, "attention_factor": 1.2}, {"theta": 1e6, "factor": 1.2}),
    ({"rotary_dim": 8, "pairing": "interleaved"}, {"dim": 8, "interleaved": True}),
    (
        {"inv_freq": np.float32(np.linspace(1, 0.1, 16))},
        {"inv_freq": np.float32(np.linspace(1, 0.1, 16)).astype(np.float64)},
    ),
    (
        {"mrope": "chunked", "mrope_sections": (8, 4, 4)},
        {"mrope": "chunked", "sections": (8, 4, 4)},
    ),
]


@pytest.mark.parametrize("given, plain", ROTARY, ids=lambda x: str(x)[:40])
def test_rotary(rng, given, plain):
    x = normal(rng, 2, 7, 3, 32)
    positions = rng.integers(0, 100000, (3, 2, 7) if "mrope" in given else (2, 7))
    out = tallow.rotary(x, tallow.Rotary(**given), positions=positions)
    for b in range(2):
        assert_close(out[b], rotate(x[b], positions[..., b, :], **plain), 1e-6)
    same = x.copy()
    assert tallow.rotary(same, tallow.Rotary(**given), positions=positions, out=same) is same
    assert (same == out).all()


def test_rotary_tables_offset_and_packed(rng):
    x = normal(rng, 9, 3, 32)
    starts, offset = np.int32([0, 4, 9]), np.int32([100, 3])
    out = tallow.rotary(x, cu_seqlens=starts, offset=offset)
    angle = np.arange(200)[:, None] * 10000.0 ** (-np.arange(16) / 16)
    tables = tallow.Rotary(
        cos=np.cos(angle).astype(np.float32), sin=np.sin(angle).astype(np.float32)
    )
    from_tables = tallow.rotary(x, tables, cu_seqlens=starts, offset=offset)
    for b in range(2):
        rows = slice(starts[b], starts[b + 1])
        wanted = rotate(x[rows], offset[b] + np.arange(starts[b + 1] - starts[b]))
        assert_close(out[rows], wanted, 1e-6)
        assert_close(from_tables[rows], wanted, 1e-6)


def test_compile_makes_a_pack(tmp_path):
    """From arrays in host memory, without a GPU; what is in the pack is not compiled again."""
    q, k = np.zeros((1, 64, 4, 64), np.float16), np.zeros((1, 64, 2, 64), np.float16)
    pack = tmp_path / "model.pack"
    with pytest.raises(ValueError, match="arch = sm_10: must be sm_75, sm_80"):
        tallow.compile(q, k, k, arch="sm_10", pack=pack)
    with pytest.raises(TypeError, match="arch: int; must be a str"):
        tallow.compile(q, k, k, arch=80, pack=pack)
    with pytest.raises(TypeError, match="pack: int; must be a path"):
        tallow.compile(q, k, k, arch="sm_80", pack=5)
    if "none" in tallow.system()["nvrtc"]:
        pytest.skip("no NVRTC")
    first = tallow.compile(q, k, k, causal=True, arch="sm_80", pack=pack)
    assert first["arch"] == "sm_80" and "head_dim=64" in first["kernel"]
    assert int(first["compiled"]) > 0 and pack.stat().st_size > 1000
    assert tallow.compile(q, k, k, causal=True, arch="sm_80", pack=pack)["compiled"] == "0"
    with pytest.raises(ValueError, match="pack = .*: must be null on the CPU"):
        tallow.attention(q, k, k, pack=pack)
