"""The same calls on a GPU: results beside the CPU's, streams, graphs, a model."""

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

import tallow  # noqa: E402
from tallow import flash_attn  # noqa: E402

CLOSE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(params=CLOSE, ids=str)
def normal(request):
    torch.manual_seed(4)
    return lambda *shape: torch.randn(*shape, dtype=request.param)


def moved(x):
    return x.cuda() if isinstance(x, torch.Tensor) else x


def check(function, *arrays, **options):
    """On both devices; lse's are compared as well as outputs. Returns what the GPU was given."""
    given = [moved(x) for x in arrays], {name: moved(x) for name, x in options.items()}
    wanted, found = function(*arrays, **options), function(*given[0], **given[1])
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (found, wanted))):
        torch.testing.assert_close(
            a.cpu(), b, rtol=CLOSE[arrays[0].dtype], atol=CLOSE[arrays[0].dtype]
        )
    return given


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"window": (20, 5)}, {"causal": True, "softcap": 3.0},
     {"causal": True, "alibi_slopes": torch.rand(8)}, {"sinks": torch.randn(8)},
     {"num_splits": 3}, {"precision": "high"}, {"dropout_p": 0.2, "dropout_seed": 9}],
    ids=lambda x: " ".join(x),
)  # fmt: skip
def test_attention(normal, options):
    q, k, v = normal(2, 70, 8, 64), normal(2, 90, 2, 64), normal(2, 90, 2, 64)
    check(tallow.attention, q, k, v, return_lse=True, **options)


def test_packed_and_paged(normal):
    starts = torch.tensor([0, 5, 5, 40], dtype=torch.int32)
    q, k, v = normal(40, 8, 64), normal(40, 2, 64), normal(40, 2, 64)
    check(flash_attn.flash_attn_varlen_func, q, k, v, starts, starts, 35, 35, causal=True,
          return_attn_probs=True)  # fmt: skip
    table = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32)
    used, pages = torch.tensor([30, 17], dtype=torch.int32), normal(2, 4, 16, 2, 64)
    check(flash_attn.flash_attn_with_kvcache, normal(2, 1, 8, 64), *pages, cache_seqlens=used,
          block_table=table)  # fmt: skip


def test_cache_step_writes_the_cache(normal):
    q, k, v = normal(2, 3, 8, 64), normal(2, 40, 2, 64), normal(2, 40, 2, 64)
    new = normal(2, 3, 2, 64), normal(2, 3, 2, 64)
    used = torch.tensor([30, 17], dtype=torch.int32)
    given, _ = check(tallow.kv_cache_step, q, k, v, *new, used, rotary=tallow.Rotary(theta=1e6))
    tolerance = CLOSE[q.dtype]
    torch.testing.assert_close(given[1].cpu(), k, rtol=tolerance, atol=tolerance)
    assert torch.equal(given[2].cpu(), v)


def test_rotary_and_merge(normal):
    x = normal(2, 9, 4, 64)
    check(tallow.rotary, x, positions=torch.randint(0, 10**6, (2, 9)))
    lse = torch.randn(2, 4, 9)
    check(tallow.merge, x, lse, normal(2, 9, 4, 64), -lse, return_lse=True)


def test_gradients(normal):
    arrays = [normal(2, n, h, 64) for n, h in ((20, 4), (30, 2), (30, 2))]

    def gradients(*arrays):
        leaves = [x.detach().requires_grad_() for x in arrays]
        out = flash_attn.flash_attn_func(*leaves, causal=True)
        return torch.autograd.grad(out.float().square().sum(), leaves)

    for a, b in zip(gradients(*map(moved, arrays)), gradients(*arrays)):
        scale = b.abs().max().item()
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=2 * scale * CLOSE[a.dtype])


def test_graph_capture(normal):
    """After prepare a call is captured, and replays with what its tensors then hold."""
    q, k, v = (normal(1, 64, 4, 64).cuda() for _ in range(3))
    out = torch.empty_like(q)
    tallow.prepare(q, k, v, causal=True, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tallow.attention(q, k, v, causal=True, out=out)
    q.copy_(normal(1, 64, 4, 64))
    graph.replay()
    assert torch.equal(out, tallow.attention(q, k, v, causal=True))


def test_own_stream(normal):
    q, k, v = (normal(1, 64, 4, 64).cuda() for _ in range(3))
    wanted, out = tallow.attention(q, k, v), torch.empty_like(q)
    torch.cuda.synchronize()
    stream, workspace = torch.cuda.Stream(), torch.empty(1 << 24, dtype=torch.uint8, device="cuda")
    tallow.attention(q, k, v, out=out, stream=stream.cuda_stream, workspace=workspace)
    stream.synchronize()
    assert torch.equal(out, wanted)


@pytest.mark.parametrize(
    "model, reference, bands",
    [
        ("tiny", "eager", "0,200,2000"),
        ("qwen2.5-vl-3b", "eager", "0,1000,4000"),
        ("qwen2.5-vl-3b", "sdpa", "4000,25000"),  # f32 scores of eager would fill the memory
    ],
)
def test_model(model, reference, bands):
    """bf16 with Tallow is as near the f32 reference as with sdpa; stages name no culprit."""
    for name in ("transformers", "tqdm", "matplotlib"):
        pytest.importorskip(name)
    from tallow import divergence

    found = {}
    for attention in ("tallow", "sdpa"):
        arguments = ["--model", model, "--attn", attention, "--reference", reference,
                     "--bands", bands, "--device", "cuda", "--quiet"]  # fmt: skip
        found[attention] = divergence.measure(divergence.parse(arguments))
    for ours, theirs in zip(found["tallow"]["bands"], found["sdpa"]["bands"]):
        mean = ours["variants"]["tallow"]["mean"]
        assert mean >= 0.9995 or ours["from"] >= 4000
        assert 1 - mean <= 1.1 * (1 - theirs["variants"]["sdpa"]["mean"])
    assert model != "tiny" or found["tallow"]["guilty_stage"] == "none"


def test_generation(capsys):
    """The layers of Qwen2.5-3B, of which four are enough for errors to reach the tokens and few
    enough for bf16's own noise to leave them alone; weights that give scores a spread of about 5,
    so that attention decides."""
    pytest.importorskip("transformers")
    import generation

    import tallow.transformers  # noqa: F401

    model = generation.build(
        "cuda", torch.bfloat16, hidden_size=2048, intermediate_size=11008, num_hidden_layers=4,
        num_attention_heads=16, num_key_value_heads=2, vocab_size=151936,
        initializer_range=0.015)  # fmt: skip
    same, report = generation.compare(model, "tallow", seeds=40)
    with capsys.disabled():
        print(f"\n{report}")
    assert same >= 0.95 * 40


def test_sdpa_registry(normal):
    """Tallow where PyTorch chooses its flash backend, dense and packed, with gradients."""
    if not hasattr(torch.nn.attention, "restore_flash_attention_impl"):
        pytest.skip("no registry of flash attentions")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.varlen import varlen_attn

    from tallow import sdpa

    q, k, v = (normal(2, 4, 40, 64).cuda().requires_grad_() for _ in range(3))
    starts = torch.tensor([0, 11, 80], dtype=torch.int32, device="cuda")

    def results():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        packed = varlen_attn(*rows, starts, starts, 69, 69, window_size=(-1, 0))
        loss = out.float().square().sum() + packed.float().square().sum()
        return out, packed, *torch.autograd.grad(loss, (q, k, v))

    wanted = results()
    sdpa.register()
    torch.nn.attention.activate_flash_attention_impl("tallow")
    try:
        found = results()
    finally:
        torch.nn.attention.restore_flash_attention_impl()
    for a, b in zip(found, wanted):
        atol = 2 * b.abs().max().item() * CLOSE[a.dtype]
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
    assert all(torch.equal(a, b) for a, b in zip(results()[:2], wanted))
