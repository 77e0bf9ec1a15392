"""Attention and rotary in plain numpy, f64, one sequence at a time: what the tests compare with.
Written from the semantics alone; nothing here calls tallow."""

import numpy as np


def visible(sq, sk, left=-1, right=-1, ranges=()):
    """(sq, sk) bool: which keys a query sees, bottom-right aligned; -1 is unlimited."""
    position = np.arange(sq)[:, None] + sk - sq
    key = np.arange(sk)[None, :]
    seen = np.ones((sq, sk), bool)
    if left >= 0:
        seen &= key >= position - left
    if right >= 0:
        seen &= key <= position + right
    for start, end in ranges:
        seen |= (start <= position) & (position < end) & (start <= key) & (key < end)
    return seen


def attend(q, k, v, seen, scale=None, softcap=0.0, slopes=None, sinks=None, keep=None, p_drop=0.0):
    """One sequence: q (sq, heads, d), k (sk, heads_kv, d), v (sk, heads_kv, dv), seen (sq, sk);
    slopes, sinks (heads); keep (heads, sq, sk). Returns out (sq, heads, dv), lse (heads, sq)."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    sq, heads, d = q.shape
    sk, heads_kv, dv = v.shape
    out, lse = np.zeros((sq, heads, dv)), np.full((heads, sq), -np.inf)
    distance = np.abs(np.arange(sq)[:, None] + sk - sq - np.arange(sk)[None, :])
    for h in range(heads):
        g = h // (heads // heads_kv)
        s = q[:, h] @ k[:, g].T * (d**-0.5 if scale is None else scale)
        if softcap:
            s = softcap * np.tanh(s / softcap)
        if slopes is not None:
            s = s - slopes[h] * distance
        s = np.where(seen, s, -np.inf)
        logits = s if sinks is None else np.concatenate([s, np.full((sq, 1), sinks[h])], 1)
        for i in range(sq):
            top = logits[i].max(initial=-np.inf)
            if top == -np.inf:
                continue
            lse[h, i] = top + np.log(np.exp(logits[i] - top).sum())
            weight = np.exp(s[i] - lse[h, i])
            if keep is not None:
                weight = weight * keep[h, i] / (1 - p_drop)
            out[i, h] = weight[seen[i]] @ v[seen[i], g]
    return out, lse


def rotate(
    x,
    positions,
    dim=None,
    theta=10000.0,
    inv_freq=None,
    factor=1.0,
    interleaved=False,
    mrope=None,
    sections=None,
):
    """x (tokens, heads, d) at integer positions (tokens), or (3, tokens) with mrope."""
    x = np.asarray(x, np.float64)
    dim = dim or x.shape[-1]
    pairs = dim // 2
    freq = theta ** (-2.0 * np.arange(pairs) / dim) if inv_freq is None else inv_freq
    rows = np.asarray(positions, np.float64)
    if mrope is None:
        row = rows[:, None] * np.ones(pairs)
    else:
        which = np.repeat(np.arange(3), sections)
        if mrope == "interleaved":
            pair = np.arange(pairs)
            which = np.array([i % 3 if i < 3 * sections[i % 3] else 0 for i in pair])
        row = rows[which].T
    angle = row * freq
    cos, sin = np.cos(angle)[:, None] * factor, np.sin(angle)[:, None] * factor
    out = x.copy()
    first = slice(0, dim, 2) if interleaved else slice(0, pairs)
    second = slice(1, dim, 2) if interleaved else slice(pairs, dim)
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def philox(counter, key):
    """Philox4x32-10 of one counter of four words and a key of two."""
    mask = 0xFFFFFFFF
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & mask, (a >> 32) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


def keep_mask(p, seed, offset, batch_index, heads, sq, sk):
    """(heads, sq, sk): 1 where dropout keeps the weight."""
    low, high = (lambda x: x & 0xFFFFFFFF), (lambda x: x >> 32)
    keep = np.zeros((heads, sq, sk))
    for h in range(heads):
        for i in range(sq):
            for j in range(sk):
                word = philox(
                    (j // 4, i, batch_index * heads + h, low(offset)),
                    (low(seed), high(seed) ^ high(offset)),
                )[j % 4]
                keep[h, i, j] = word >= p * 2**32
    return keep
