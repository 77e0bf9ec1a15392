"""Arrays of other libraries: the same results as numpy's, from the same memory."""

import numpy as np
import pytest

import tallow

RNG = np.random.default_rng(3)
Q, K, V = (
    RNG.standard_normal((2, n, h, 16)).astype(np.float32) for n, h in ((5, 4), (9, 2), (9, 2))
)
USED = np.int32([7, 9])
WANTED, WANTED_LSE = tallow.attention(Q, K, V, seqused_k=USED, causal=True, return_lse=True)


class Exporter:
    """An array of a library that nobody has heard of."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **given):
        return self.array.__dlpack__(**given)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack():
    out = np.empty_like(Q)
    mixed = tallow.attention(
        Exporter(Q), K, Exporter(V), seqused_k=Exporter(USED), causal=True, out=Exporter(out)
    )
    assert isinstance(mixed, Exporter) and (out == WANTED).all()
    with pytest.raises(TypeError, match="out is absent: must be given, as arrays of test_arrays"):
        tallow.attention(Exporter(Q), K, V)


def test_dlpack_strides_and_offset():
    """A view into the middle of other memory, with the last dimensions of a wider array."""
    wide = RNG.standard_normal((2, 9, 4, 40)).astype(np.float32)
    view = wide[::-1, 1:, ::2, 16:32]
    out = np.empty((2, 5, 4, 16), np.float32)
    tallow.attention(Q, Exporter(view), Exporter(view), out=out)
    assert (out == tallow.attention(Q, view.copy(), view.copy())).all()


def test_structured_memory_and_offsets():
    record = np.zeros(9, [("tag", "i1"), ("row", "f4", 2 * 16)])
    view = record["row"].reshape(9, 2, 16)[None]
    with pytest.raises(ValueError, match="v: strides .* bytes; must be multiples of 4"):
        tallow.attention(Q[:1], view, view)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch(dtype):
    torch = pytest.importorskip("torch")
    q, k, v = (torch.from_numpy(x).to(getattr(torch, dtype)) for x in (Q, K, V))
    out, lse = tallow.attention(
        q, k, v, seqused_k=torch.from_numpy(USED), causal=True, return_lse=True
    )
    assert out.dtype == q.dtype and lse.dtype == torch.float32
    close = {"float32": 0, "float16": 3e-3, "bfloat16": 3e-2}[dtype]
    assert np.abs(out.float().numpy() - WANTED).max() <= close
    into = torch.empty_like(out)
    assert tallow.attention(q, k, v, seqused_k=USED, causal=True, out=into) is into
    assert torch.equal(into, out)


def test_torch_gradients_are_refused():
    torch = pytest.importorskip("torch")
    q = torch.from_numpy(Q).requires_grad_()
    with pytest.raises(ValueError, match="q requires grad"):
        tallow.attention(q, K, V)
    with torch.no_grad():
        assert torch.equal(tallow.attention(q, K, V), torch.from_numpy(tallow.attention(Q, K, V)))
    with pytest.raises(ValueError, match="q is a view that is negated when read"):
        tallow.attention(torch._neg_view(torch.from_numpy(Q)), K, V)
    with pytest.raises(ValueError, match="k: on meta"):
        tallow.attention(Q, torch.empty(2, 9, 2, 16, device="meta"), V)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax(dtype):
    jax = pytest.importorskip("jax")
    q, k, v = (jax.numpy.asarray(x).astype(dtype) for x in (Q, K, V))
    out = tallow.attention(q, k, v, seqused_k=jax.numpy.asarray(USED), causal=True)
    assert isinstance(out, jax.Array) and out.dtype == q.dtype
    assert np.abs(np.asarray(out, np.float32) - WANTED).max() <= (
        3e-2 if dtype == "bfloat16" else 0
    )
    with pytest.raises(ValueError, match="out is read-only"):
        tallow.attention(q, k, v, out=out)


def test_streams_of_other_libraries_join():
    """A producer is told the stream that the call runs on; arrays of q's library need not be."""
    from tallow import _arrays

    told = []

    class Pending(Exporter):
        def __dlpack__(self, **given):
            told.append(given)

    other = Pending(Q)
    _arrays.join([Q, K, other, (other, "capsule")], Q, 77)
    _arrays.join([other], Q, 0)
    _arrays.join([other], Pending(K), 0)
    assert told == [{"stream": 77}, {"stream": 77}, {"stream": 1}]


def test_cuda_arrays():
    """torch and cupy on a GPU, on a stream of their own; what is on two devices is refused."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    q, k, v, used = (torch.from_numpy(x).cuda() for x in (Q, K, V, USED))
    with torch.cuda.stream(torch.cuda.Stream()):
        out = tallow.attention(q, k, v, seqused_k=used, causal=True)
        torch.cuda.current_stream().synchronize()
    assert np.abs(out.cpu().numpy() - WANTED).max() < 1e-5
    with pytest.raises(ValueError, match="k is in host memory: must be in CUDA device 0, as q is"):
        tallow.attention(q, K, v)
    cupy = pytest.importorskip("cupy")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        found = tallow.attention(
            *map(cupy.asarray, (Q, K, V)), seqused_k=cupy.asarray(USED), causal=True
        )
        stream.synchronize()
    assert np.abs(found.get() - WANTED).max() < 1e-5
