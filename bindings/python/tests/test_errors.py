"""Wrong arguments: the exception's type, and that its text names the argument."""

import numpy as np
import pytest

import tallow


def arrays(sq=4, sk=6, heads=2, d=16):
    return {
        "q": np.zeros((1, sq, heads, d), np.float32),
        "k": np.zeros((1, sk, heads, d), np.float32),
        "v": np.zeros((1, sk, heads, d), np.float32),
    }


def frozen(shape):
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


F32 = np.float32
CASES = [
    ({"q": [[1.0]]}, TypeError, "q: list"),
    ({"q": np.zeros((1, 4, 2, 16))}, TypeError, "q: dtype float64"),
    ({"q": np.zeros((1, 4, 2, 16), ">f4")}, TypeError, "q: dtype >f4"),
    ({"q": np.zeros((4, 2, 16), F32)}, ValueError, r"q: 3 dimensions; must be \(batch"),
    ({"q": np.zeros((1, 4, 2, 12), F32)}, ValueError, "head_dim must be a multiple of 8"),
    ({"k": np.zeros((1, 6, 2, 16), np.float16)}, ValueError, "k.dtype = float16: must be float32"),
    (
        {"k": np.zeros((1, 6, 3, 16), F32), "v": np.zeros((1, 6, 3, 16), F32)},
        ValueError,
        "heads_kv must divide",
    ),
    ({"v": np.zeros((1, 5, 2, 16), F32)}, ValueError, r"v.shape\[1\] = 5"),
    ({"v": np.zeros((1, 6, 2, 16, 1), F32)}, ValueError, "v: 5 dimensions"),
    ({"k": np.broadcast_to(F32(1), (1, 6, 2, 16))}, ValueError, "k: one element"),
    ({"k": np.zeros((1, 6, 2, 32), F32)[..., ::2]}, ValueError, r"k.strides\[3\] = 2"),
    ({"out": frozen((1, 4, 2, 16))}, ValueError, "out is read-only"),
    ({"out": np.zeros((1, 4, 2, 16), np.float16)}, ValueError, "out.dtype"),
    ({"lse": np.zeros((1, 4, 2), F32)}, ValueError, "lse.shape"),
    ({"softmax_scale": 0}, ValueError, "softmax_scale = 0: must not be 0; None means"),
    ({"softmax_scale": "x"}, TypeError, "softmax_scale: str"),
    ({"softcap": -1.0}, ValueError, "softcap = -1"),
    ({"softcap": 1e300}, ValueError, "softcap = 1e.300: must fit 32 bits"),
    ({"window": (1, 2, 3)}, ValueError, "window: 3 entries"),
    ({"window": (-2, 0)}, ValueError, "window_left = -2"),
    ({"window": 3}, TypeError, r"window: int; must be \(left, right\)"),
    ({"window": (2.5, 0)}, TypeError, "window_left: float"),
    ({"window": (2, 5), "causal": True}, ValueError, "right must be 0 or -1"),
    ({"precision": "exact"}, ValueError, "precision = 'exact': must be one of 'default'"),
    ({"num_splits": -1}, ValueError, "num_splits = -1"),
    ({"num_splits": 2**70}, ValueError, "num_splits = 1180591620717411303424: must be"),
    ({"dropout_seed": -1}, ValueError, "dropout_seed = -1"),
    ({"dropout_p": 1.0}, ValueError, "dropout_p = 1"),
    ({"sinks": np.zeros(3, F32)}, ValueError, r"sinks.shape\[0\] = 3"),
    ({"seqused_k": np.int32([7])}, ValueError, r"seqused_k\[0\] = 7"),
    ({"seqused_k": np.int64([3])}, ValueError, "seqused_k.dtype"),
    ({"k_new": np.zeros((1, 1, 2, 16), F32)}, ValueError, "seqused_k is absent"),
    ({"rotary": 64}, TypeError, "rotary: int; must be a tallow.Rotary"),
    ({"rotary": tallow.Rotary()}, ValueError, "rotary.rotary_dim = 16: must be 0 without k_new"),
    ({"rotary": tallow.Rotary(theta=0)}, ValueError, "rotary.theta = 0: must not be 0"),
    ({"rotary": tallow.Rotary(mrope_sections=(1, 2))}, ValueError, "mrope_sections: 2 entries"),
    ({"workspace": np.zeros(10, F32)}, ValueError, "workspace: float32"),
    ({"pack": "a.pack"}, ValueError, "pack"),
    ({"stream": 1}, ValueError, "out is absent: must be given, as stream is given"),
    ({"prefix_ranges": np.zeros((1, 1, 2), np.int32)}, ValueError, "prefix_ranges is given"),
]


@pytest.mark.parametrize("given, kind, text", CASES, ids=[case[2] for case in CASES])
def test_wrong_argument(given, kind, text):
    with pytest.raises(kind, match=text):
        tallow.attention(**(arrays() | given))


def test_read_only_cache():
    a = arrays()
    a["k"] = frozen(a["k"].shape)
    new = np.zeros((1, 1, 2, 16), np.float32)
    with pytest.raises(ValueError, match="k is read-only"):
        tallow.attention(**a, k_new=new, v_new=new, seqused_k=np.int32([2]))


def test_other_calls():
    x = np.zeros((2, 3, 1, 8), np.float32)
    with pytest.raises(ValueError, match="x: 2 dimensions"):
        tallow.rotary(x[0, 0])
    with pytest.raises(ValueError, match="positions.shape"):
        tallow.rotary(x, positions=np.zeros((2, 4), np.int32))
    lse = np.zeros((2, 1, 3), np.float32)
    with pytest.raises(ValueError, match="lse_b.shape"):
        tallow.merge(x, lse, x, lse[:1])


def test_library_errors_are_tallow_errors():
    from tallow._library import _library, _need_ok

    _library.tallow_attention(None, 0)
    with pytest.raises(tallow.Error, match=r"TALLOW_NO_DEVICE") as caught:
        _need_ok(5)
    assert caught.value.status == "TALLOW_NO_DEVICE"
