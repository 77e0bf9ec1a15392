"""tallow.flash_attn: signatures, the semantics that differ from Tallow's, gradients, compile."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from reference import attend, keep_mask, rotate, visible

torch = pytest.importorskip("torch")
from tallow import _torch_ops, flash_attn  # noqa: E402

INF = float("inf")
COMMON = (
    "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
    "alibi_slopes=None, deterministic=False, return_attn_probs=False"
)
PACKED = "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k"
SIGNATURES = {
    "flash_attn_func": f"q, k, v, {COMMON}",
    "flash_attn_kvpacked_func": f"q, kv, {COMMON}",
    "flash_attn_qkvpacked_func": f"qkv, {COMMON}",
    "flash_attn_varlen_func": f"q, k, v, {PACKED}, {COMMON}, block_table=None",
    "flash_attn_varlen_kvpacked_func": f"q, kv, {PACKED}, {COMMON}",
    "flash_attn_varlen_qkvpacked_func": f"qkv, cu_seqlens, max_seqlen, {COMMON}",
    "flash_attn_with_kvcache": "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, "
    "rotary_sin=None, cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, "
    "block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
    "rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    found = inspect.signature(getattr(flash_attn, name)).parameters.values()
    said = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in found
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert ", ".join(said) == SIGNATURES[name] and len(said) == len(found)


@pytest.fixture
def normal():
    torch.manual_seed(11)
    return lambda *shape: torch.randn(*shape)


def close(found, wanted, tolerance=1e-5):
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=tolerance, atol=tolerance)


def test_dense_and_packed_views(normal):
    """qkv and kv in one tensor are read in place, with strides."""
    qkv = normal(2, 7, 3, 4, 32)
    q, k, v = qkv.unbind(2)
    for b in range(2):
        wanted = attend(q[b], k[b], v[b], visible(7, 7, right=0))[0]
        for out in (
            flash_attn.flash_attn_func(q, k, v, causal=True),
            flash_attn.flash_attn_kvpacked_func(q, qkv[:, :, 1:], causal=True),
            flash_attn.flash_attn_qkvpacked_func(qkv, causal=True),
        ):
            close(out[b], wanted)
    transposed = q.transpose(1, 3).contiguous().transpose(1, 3)
    assert transposed.stride(-1) != 1
    assert torch.equal(
        flash_attn.flash_attn_func(transposed, k, v), flash_attn.flash_attn_func(q, k, v)
    )


WINDOWS = [(-1, -1), (-7, -2), (3, 1), (2, -1), (-1, 0), (100, 2), (3, 100)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_and_lse(normal, causal, window):
    """-1 is unlimited, causal sets the right side; lse is +inf where no key is visible."""
    q, k, v = normal(1, 9, 2, 16), normal(1, 6, 2, 16), normal(1, 6, 2, 16)
    as_tensors = tuple(torch.tensor(side) for side in window)
    left, right = (-1 if side < 0 else side for side in window)
    seen = visible(9, 6, left=left, right=0 if causal else right)
    wanted, lse = attend(q[0], k[0], v[0], seen)
    for given in (window, as_tensors):
        out, found, probs = flash_attn.flash_attn_func(
            q, k, v, causal=causal, window_size=given, return_attn_probs=True
        )
        close(out[0], wanted)
        close(found[0], np.where(lse == -INF, INF, lse))
        assert probs.numel() == 0
    assert (
        flash_attn.flash_attn_func(q, k[:, :0], v[:, :0], return_attn_probs=True)[1].eq(INF).all()
    )


STARTS_Q, STARTS_K = [0, 3, 3, 8], [0, 2, 6, 16]


@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_alibi_lse_dense_and_packed(normal, causal, per_sequence):
    """With causal, lse is that of scores with slope * j in place of -slope * distance."""
    batch, sq, sk = 3, 5, 9
    q, k, v = normal(batch, sq, 2, 16), normal(batch, sk, 2, 16), normal(batch, sk, 2, 16)
    slopes = torch.rand(batch, 2) if per_sequence else torch.rand(2)
    out, lse, _ = flash_attn.flash_attn_func(
        q, k, v, causal=causal, alibi_slopes=slopes, return_attn_probs=True
    )
    rows = (slice(b, b + 1) for b in range(batch))
    cases = [(q[r][0], k[r][0], v[r][0], out[r][0], lse[r][0]) for r in rows]
    starts = [torch.tensor(s, dtype=torch.int32) for s in (STARTS_Q, STARTS_K)]
    q, k, v = normal(8, 2, 16), normal(16, 2, 16), normal(16, 2, 16)
    out, lse, _ = flash_attn.flash_attn_varlen_func(
        q, k, v, *starts, 5, 10, causal=causal, alibi_slopes=slopes, return_attn_probs=True
    )
    for b in range(3):
        i, j = slice(*STARTS_Q[b : b + 2]), slice(*STARTS_K[b : b + 2])
        cases.append((q[i], k[j], v[j], out[i], lse[:, i]))
    for n, (q, k, v, out, lse) in enumerate(cases):
        sq, sk = q.shape[0], k.shape[0]
        m = (slopes[n % 3] if per_sequence else slopes).numpy()
        seen = visible(sq, sk, right=0 if causal else -1)
        wanted, wanted_lse = attend(q, k, v, seen, slopes=m)
        if causal:
            wanted_lse = wanted_lse + m[:, None] * (np.arange(sq) + sk - sq)
        close(out, wanted)
        close(lse, np.where(wanted_lse == -INF, INF, wanted_lse), 3e-5)


def test_packed_functions(normal):
    starts = torch.tensor(STARTS_K, dtype=torch.int32)
    qkv = normal(16, 3, 2, 16)
    q, k, v = qkv.unbind(1)
    wanted = flash_attn.flash_attn_varlen_func(q, k, v, starts, starts, 10, 10, causal=True)
    pairs = flash_attn.flash_attn_varlen_kvpacked_func(
        q, qkv[:, 1:], starts, starts, 10, 10, causal=True
    )
    triples = flash_attn.flash_attn_varlen_qkvpacked_func(qkv, starts, 10, causal=True)
    assert torch.equal(pairs, wanted) and torch.equal(triples, wanted)
    pages = [x.reshape(4, 4, 2, 16) for x in (k, v)]
    lengths = torch.tensor([0, 8, 14], dtype=torch.int32)
    table = torch.tensor([[2, 0], [3, 1]], dtype=torch.int32)
    out = flash_attn.flash_attn_varlen_func(
        q, *pages, lengths, lengths, 8, 8, causal=True, block_table=table
    )
    dense = [x[table.long()].flatten(1, 2) for x in pages]
    for b, (first, last) in enumerate(((0, 8), (8, 14))):
        n = last - first
        close(
            out[first:last],
            attend(q[first:last], dense[0][b, :n], dense[1][b, :n], visible(n, n, right=0))[0],
        )


@pytest.mark.parametrize("d", [20, 24])
def test_head_dim_is_padded_and_the_cache_written_back(normal, d):
    q, k, v = normal(2, 3, 2, d), normal(2, 3, 1, d), normal(2, 3, 1, d)
    caches = normal(2, 12, 1, d), normal(2, 12, 1, d)
    k_cache, v_cache = (x.clone() for x in caches)
    out, lse = flash_attn.flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=5, causal=True, return_softmax_lse=True
    )
    assert out.shape == q.shape
    for b in range(2):
        keys, values = (
            np.concatenate([c[b, :5].numpy(), x[b].numpy()]) for c, x in zip(caches, (k, v))
        )
        wanted, wanted_lse = attend(q[b], keys, values, visible(3, 8, right=0))
        close(out[b], wanted)
        close(lse[b], wanted_lse)
        close(k_cache[b, :8], keys, 0)
        close(v_cache[b, :8], values, 0)
    assert torch.equal(k_cache[:, 8:], caches[0][:, 8:])


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_cache_rotary(normal, causal, interleaved):
    """Without causal and window every query is at cache_seqlens; lengths, rows, leftpad."""
    q, k, v = normal(2, 3, 2, 32), normal(2, 3, 2, 32), normal(2, 3, 2, 32)
    k_cache, v_cache = normal(4, 12, 2, 32), normal(4, 12, 2, 32)
    keys_before, values_before = k_cache.clone().numpy(), v_cache.clone().numpy()
    angle = torch.arange(20)[:, None] * 10000.0 ** (-torch.arange(8) / 8)
    used, rows, pad = (torch.tensor(x, dtype=torch.int32) for x in ([4, 9], [3, 1], [1, 2]))
    out = flash_attn.flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, angle.cos(), angle.sin(), used, rows, pad, causal=causal,
        rotary_interleaved=interleaved,
    )  # fmt: skip
    for b in range(2):
        n, at = int(used[b]), np.arange(3) + int(used[b])
        options = {"dim": 16, "interleaved": interleaved}
        keys = np.concatenate([keys_before[rows[b], pad[b] : n], rotate(k[b], at, **options)])
        values = np.concatenate([values_before[rows[b], pad[b] : n], v[b].numpy()])
        turned = rotate(q[b], at if causal else np.full(3, n), **options)
        seen = visible(3, len(keys), right=0 if causal else -1)
        close(out[b], attend(turned, keys, values, seen)[0])


def test_paged_cache_and_splits(normal):
    q, pages = normal(2, 1, 4, 16), normal(2, 6, 8, 2, 16)
    table = torch.tensor([[5, 0, 3], [1, 4, 2]], dtype=torch.int32)
    used = torch.tensor([20, 9], dtype=torch.int32)
    for splits in (0, 1, 3):
        out = flash_attn.flash_attn_with_kvcache(
            q, *pages, cache_seqlens=used, block_table=table, num_splits=splits
        )
        for b in range(2):
            keys, values = (x[table[b].long()].flatten(0, 1)[: used[b]] for x in pages)
            close(out[b], attend(q[b], keys, values, visible(1, int(used[b])))[0])


def plain(q, k, v, seen, scale, softcap, slopes, keep=1.0):
    """Differentiable attention of one sequence, f64; returns out and lse."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    s = torch.einsum("ihd,jhd->hij", q, k) * scale
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    sq, sk = s.shape[1:]
    distance = (torch.arange(sq)[:, None] + sk - sq - torch.arange(sk)).abs()
    s = s - slopes[:, None, None] * distance
    s = s.masked_fill(~torch.from_numpy(seen), -1e30)
    lse = s.logsumexp(-1)
    return torch.einsum("hij,jhd->ihd", torch.exp(s - lse[..., None]) * keep, v), lse


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"window_size": (3, 2), "softcap": 2.0, "softmax_scale": 0.4},
     {"causal": True, "alibi_slopes": True}, {"dropout_p": 0.3}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_gradients(normal, options, packed):
    """dq, dk, dv of out and lse, against autograd in f64, dense, packed, padded, grouped heads."""
    starts_q, starts_k, d = [0, 6, 9], [0, 8, 13], 20
    shape = (lambda n, h: (n, h, d)) if packed else (lambda n, h: (1, n, h, d))
    nq, nk = (9, 13) if packed else (6, 8)
    leaves = [normal(*shape(n, h)).requires_grad_() for n, h in ((nq, 4), (nk, 2), (nk, 2))]
    slopes = torch.rand(4) if options.get("alibi_slopes") else None
    given = options | {"alibi_slopes": slopes, "return_attn_probs": True}
    torch.manual_seed(5)
    if packed:
        starts = [torch.tensor(s, dtype=torch.int32) for s in (starts_q, starts_k)]
        out, lse, _ = flash_attn.flash_attn_varlen_func(*leaves, *starts, 6, 8, **given)
    else:
        out, lse, _ = flash_attn.flash_attn_func(*leaves, **given)
    w_out, w_lse = normal(*out.shape), normal(*lse.shape)
    found = torch.autograd.grad((out * w_out).sum() + (lse * w_lse).sum(), leaves)

    torch.manual_seed(5)
    rng = torch.randint(2**63 - 1, (2,)).tolist()
    p, (left, right) = options.get("dropout_p", 0.0), options.get("window_size", (-1, -1))
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    loss = 0
    for b in range(2 if packed else 1):
        i, j = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
        q, k, v = (x[r] if packed else x[0] for x, r in zip(doubles, (i, j, j)))
        seen = visible(q.shape[0], k.shape[0], left, 0 if options.get("causal") else right)
        keep = 1.0
        if p:
            kept = keep_mask(np.float32(p), *rng, b, 4, q.shape[0], k.shape[0])
            keep = torch.from_numpy(kept) / (1 - p)
        o, s = plain(q, k, v, seen, options.get("softmax_scale", d**-0.5),
                     options.get("softcap", 0), slopes if slopes is not None else torch.zeros(4),
                     keep)  # fmt: skip
        wo, wl = (w_out[i], w_lse[:, i]) if packed else (w_out[0], w_lse[0])
        loss = loss + (o * wo).sum() + (s * wl).sum()
    for a, b in zip(found, torch.autograd.grad(loss, doubles)):
        close(a, b.numpy(), 3e-4)


def test_gradients_of_rows_that_see_nothing(normal):
    q, k, v = (normal(1, n, 2, 16).requires_grad_() for n in (5, 3, 3))
    flash_attn.flash_attn_func(q, k, v, causal=True).sum().backward()
    assert q.grad[0, :2].eq(0).all() and all(x.grad.isfinite().all() for x in (q, k, v))


def test_what_has_no_backward_says_so(normal):
    q, k, v = (normal(8, 1, 16).requires_grad_() for _ in range(3))
    starts, table = torch.tensor([0, 8], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    out = flash_attn.flash_attn_varlen_func(
        q, k[None], v[None], starts, starts, 8, 8, block_table=table
    )
    with pytest.raises(NotImplementedError, match="block_table"):
        out.sum().backward()
    with pytest.raises(RuntimeError, match="no autograd|not implemented|does not require grad"):
        flash_attn.flash_attn_with_kvcache(
            q[None].detach().requires_grad_(), k.detach()[None], v.detach()[None]
        ).sum().backward()


def test_dropout_weights(normal):
    """return_attn_probs: exp(score - maximum), negative where dropped, as the seed says."""
    q, k, v = normal(2, 5, 2, 16), normal(2, 7, 1, 16), normal(2, 7, 1, 16)
    torch.manual_seed(3)
    out, _, probs = flash_attn.flash_attn_func(q, k, v, 0.4, causal=True, return_attn_probs=True)
    torch.manual_seed(3)
    rng = torch.randint(2**63 - 1, (2,)).tolist()
    assert probs.shape == (2, 2, 128, 128)
    for b in range(2):
        keep, seen = keep_mask(np.float32(0.4), *rng, b, 2, 5, 7), visible(5, 7, right=0)
        wanted, lse = attend(q[b], k[b], v[b], seen, keep=keep, p_drop=0.4)
        close(out[b], wanted)
        found = probs[b, :, :5, :7].numpy()
        assert ((found > 0) == (keep * seen > 0)).all()
        weight = np.abs(found) / np.abs(found).sum(-1, keepdims=True)
        close(torch.from_numpy(np.einsum("hij,jd->ihd", weight * keep / 0.6, v[b, :, 0])), wanted)
    assert not torch.equal(flash_attn.flash_attn_func(q, k, v, 0.4), out)


def test_operators_are_sound(normal):
    """PyTorch's own checks of schema, fake shapes and autograd registration."""
    q, k, v = (normal(2, 5, h, 16).requires_grad_() for h in (4, 2, 2))
    dense = (q, k, v, None, None, 5, 5, None, None, None, None, 0.25, -1, 0, 0.0, 0.0, None)
    torch.library.opcheck(_torch_ops.attention_op, dense)
    starts = torch.tensor([0, 2, 5], dtype=torch.int32)
    packed = (*(x[0] for x in (q, k, v)), starts, starts, 3, 3, *dense[7:])
    torch.library.opcheck(_torch_ops.attention_op, packed)
    cache = [x.detach() for x in (q, k, v)]
    lengths = torch.tensor([2, 3], dtype=torch.int32)
    torch.library.opcheck(
        _torch_ops.attention_with_cache_op,
        (*cache, k.detach()[:, :1], v.detach()[:, :1], None, None, False, None, lengths, None, None,
         None, None, 0.25, -1, 0, 0.0, 0),
    )  # fmt: skip
    tables = torch.rand(9, 4)
    torch.library.opcheck(_torch_ops.rotary_op, (q, tables, tables, True, None, None))


def test_compile(normal):
    """One graph, forward and backward, no break."""
    q, k, v = (normal(2, 5, h, 16).requires_grad_() for h in (4, 2, 2))

    def step(q, k, v):
        return flash_attn.flash_attn_func(q * 2, k, v, causal=True, window_size=(3, 0)).sum()

    wanted = torch.autograd.grad(step(q, k, v), (q, k, v))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(q, k, v), (q, k, v)), wanted):
        assert torch.equal(a, b)


INSTALLED = """
import importlib.metadata, importlib.util, torch
import tallow.flash_attn
tallow.flash_attn.install()
tallow.flash_attn.install()
assert importlib.util.find_spec("flash_attn")
assert importlib.metadata.version("flash_attn") == "2.8.3"
assert importlib.metadata.version("numpy")
import flash_attn
from flash_attn import flash_attn_func
from flash_attn.flash_attn_interface import flash_attn_varlen_func
from flash_attn.bert_padding import pad_input, unpad_input, index_first_axis
from flash_attn.layers.rotary import apply_rotary_emb
assert flash_attn.__version__ == "2.8.3" and flash_attn_func is tallow.flash_attn.flash_attn_func
x, mask = torch.randn(2, 5, 3, requires_grad=True), torch.tensor([[1, 1, 0, 0, 1], [1, 0, 0, 0, 0]])
packed, indices, starts, longest, used = unpad_input(x, mask)
assert starts.tolist() == [0, 3, 4] and longest == 3 and used.tolist() == [3, 1]
back = pad_input(packed, indices, 2, 5)
assert torch.equal(back, x * mask[..., None])
back.sum().backward()
assert torch.equal(x.grad, mask[..., None].expand(2, 5, 3).float())
assert torch.equal(index_first_axis(x.flatten(0, 1), indices), packed)
"""


def test_install():
    subprocess.run([sys.executable, "-c", INSTALLED], check=True)
    refused = "import sys, types; sys.modules['flash_attn'] = types.ModuleType('flash_attn')\n"
    refused += "import tallow.flash_attn; tallow.flash_attn.install()"
    found = subprocess.run([sys.executable, "-c", refused], capture_output=True, text=True)
    assert "flash_attn is already imported" in found.stderr


@pytest.mark.parametrize("interleaved", [True, False])
def test_apply_rotary_emb(normal, interleaved):
    from tallow._flash_rotary import apply_rotary_emb

    x = normal(2, 5, 3, 24).requires_grad_()
    angle = torch.arange(30)[:, None] * 100.0 ** (-torch.arange(8) / 8)
    offsets = torch.tensor([3, 20])
    out = apply_rotary_emb(x, angle.cos(), angle.sin(), interleaved, seqlen_offsets=offsets)
    for b in range(2):
        at = int(offsets[b]) + np.arange(5)
        options = {"dim": 16, "theta": 100.0, "interleaved": interleaved}
        close(out[b], rotate(x.detach()[b], at, **options))
    weight = normal(*out.shape)
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    back = apply_rotary_emb(weight, angle.cos(), -angle.sin(), interleaved, seqlen_offsets=offsets)
    assert torch.equal(grad, back)
    starts = torch.tensor([0, 2, 10], dtype=torch.int32)
    packed = x.detach().reshape(10, 3, 24).clone()
    wanted = [rotate(packed[s], np.arange(n) + 4, dim=16, theta=100.0, interleaved=interleaved)
              for s, n in ((slice(0, 2), 2), (slice(2, 10), 8))]  # fmt: skip
    same = apply_rotary_emb(packed, angle.cos(), angle.sin(), interleaved, True, 4, starts, 8)
    assert same is packed
    close(packed, np.concatenate(wanted))
