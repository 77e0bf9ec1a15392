"""Masks of PyTorch and transformers: sdpa.replaced(), and models with attn_implementation
"tallow"."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from tallow import _row_masks, flash_attn, sdpa  # noqa: E402
from tallow import _torch_ops as ops  # noqa: E402

LEAST = torch.finfo(torch.float32).min
REFERENCE = torch.nn.functional.scaled_dot_product_attention


@pytest.fixture
def normal():
    torch.manual_seed(2)
    return lambda *shape: torch.randn(*shape)


def close(found, wanted, tolerance=2e-5):
    np.testing.assert_allclose(
        found.detach().numpy(), wanted.detach().numpy(), tolerance, tolerance
    )


def banded(rows):
    """(rows, keys) bool from a list of intervals."""
    keys = max(end for _, end in rows)
    return torch.tensor([[first <= j < end for j in range(keys)] for first, end in rows])


MASKS = {
    "causal": banded([(0, i + 1) for i in range(8)]),
    "window": banded([(max(0, i - 2), i + 1) for i in range(8)]),
    "chunked": banded([(i // 3 * 3, i + 1) for i in range(8)]),
    "packed": banded([(0, 1), (0, 2), (2, 3), (2, 4), (2, 5), (5, 6), (5, 7), (5, 8)]),
    "left padding": banded([(0, 0), (0, 0), (2, 3), (2, 4), (2, 5), (2, 6)]),
    "right padding": banded([(0, 1), (0, 2), (0, 3), (0, 3), (0, 3)]),
    "two-way block": banded([(0, 1), (0, 5), (0, 5), (0, 5), (0, 5), (0, 6), (0, 7)]),
    "two-way window": banded([(max(0, i - 2), min(9, i + 3)) for i in range(9)]),
    "window then wider": banded([(0, 2), (1, 3), (2, 4), (0, 7), (0, 8), (0, 3)]),
    "nothing": banded([(0, 0), (0, 3)])[:1],
    "all": banded([(0, 5)] * 4),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_honoured(normal, name):
    """Alone, and two different ones in a batch, as bool and as added floats, with gradients."""
    mask = MASKS[name]
    sq, sk = mask.shape
    other = torch.ones(sq, sk, dtype=torch.bool).tril(sk - sq)
    both = torch.stack([mask, other])[:, None]
    q, k, v = (normal(2, 2, n, 16).requires_grad_() for n in (sq, sk, sk))
    wanted = REFERENCE(q, k, v, both).nan_to_num()
    for given in (both, torch.where(both, 0.0, -torch.inf), torch.where(both, 0.0, LEAST)):
        close(sdpa.scaled_dot_product_attention(q, k, v, given), wanted)
    close(sdpa.scaled_dot_product_attention(q, k, v, mask)[0], wanted[0])
    seen = both.any(-1, keepdim=True)
    weight = normal(*wanted.shape) * seen
    grads = torch.autograd.grad((sdpa.scaled_dot_product_attention(q, k, v, both) * weight).sum(),
                                (q, k, v))  # fmt: skip
    safe = both | ~seen  # gradients of rows that see nothing are nan in the reference
    wanted = torch.autograd.grad((REFERENCE(q, k, v, safe) * weight).sum(), (q, k, v))
    for a, b in zip(grads, wanted):
        close(a, b)


def test_masks_become_few_sequences():
    rows = _row_masks.intervals(torch.stack([MASKS["causal"], MASKS["window"]])[:, None])
    found = _row_masks.runs(rows)
    assert sum(int((r.keys[2] > 0).sum()) for r in found) <= 8 and len(found) <= 2
    (one,) = _row_masks.runs(_row_masks.intervals(MASKS["packed"][None, None]))
    assert one.cu_seqlens_q.tolist() == [0, 2, 5, 8] and one.keys[1:].tolist() == [
        [0, 2, 5], [2, 5, 8]]  # fmt: skip


def test_masks_that_cannot_be_honoured(normal):
    q = normal(1, 2, 3, 16)
    hole = torch.tensor([[True, False, True]] * 3)
    for mask, text in (
        (hole, "no interval"),
        (torch.full((3, 3), 0.5), "values other than 0"),
        (torch.stack([hole, ~hole])[None], "differs between heads"),
    ):
        with pytest.raises(ValueError, match=text):
            sdpa.scaled_dot_product_attention(q, q, q, mask)


@pytest.mark.parametrize("sq, sk", [(5, 5), (5, 9), (9, 5)])
def test_sdpa_context(normal, sq, sk):
    """torch's causal alignment is to the top left; 3 and 5 dimensions; grouped heads; odd sizes."""
    for shape, heads_kv in (((), None), ((3,), None), ((2, 4), 2), ((2, 3, 4), None)):
        kv = (*shape[:-1], heads_kv) if heads_kv else shape
        q, k, v = normal(*shape, sq, 12), normal(*kv, sk, 12), normal(*kv, sk, 20)
        for options in ({}, {"is_causal": True}, {"scale": 0.5}):
            options = options | ({"enable_gqa": True} if heads_kv else {})
            wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
            with sdpa.replaced():
                replaced = torch.nn.functional.scaled_dot_product_attention
                assert replaced is sdpa.scaled_dot_product_attention
                close(replaced(q, k, v, **options), wanted)
    assert torch.nn.functional.scaled_dot_product_attention is REFERENCE


@pytest.fixture
def registry():
    """PyTorch's choice of a flash attention, left as it was found; the calls that Tallow got."""
    if not hasattr(torch.nn.attention, "restore_flash_attention_impl"):
        pytest.skip("no registry of flash attentions")
    calls = []
    attention = ops.attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "attention", lambda *a, **k: calls.append(a) or attention(*a, **k))
        sdpa.register()
        yield calls
    if torch.nn.attention.current_flash_attention_impl():
        torch.nn.attention.restore_flash_attention_impl()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("option", [{}, {"is_causal": True}, {"scale": 0.3},
                                    {"attn_mask": MASKS["window"]}], ids=str)  # fmt: skip
def test_flash_backend(normal, registry, option, compiled):
    """activate_flash_attention_impl("tallow"), for calls that record gradients and others."""
    q, k, v = (normal(2, 4, 8, 16).requires_grad_() for _ in range(3))

    def results():
        function = torch.nn.functional.scaled_dot_product_attention
        out = torch.compile(function, fullgraph=True)(q, k, v, **option) if compiled else function(
            q, k, v, **option)  # fmt: skip
        with torch.inference_mode():
            quick = function(q, k, v, **option)
        return out, quick, *torch.autograd.grad(out.square().sum(), (q, k, v))

    wanted = results()
    assert not registry
    torch.compiler.reset()
    torch.nn.attention.activate_flash_attention_impl("tallow")
    assert torch.nn.attention.current_flash_attention_impl() == "tallow"
    for a, b in zip(results(), wanted):
        close(a, b, 1e-4)
    assert len(registry) == 2
    torch.nn.attention.restore_flash_attention_impl()
    torch.compiler.reset()
    assert all(torch.equal(a, b) for a, b in zip(results(), wanted)) and len(registry) == 2


def test_flash_operators(normal, registry):
    """What other callers ask of PyTorch's flash operators: packed sequences with a window and their
    gradients, grouped heads; and what they ask in vain."""
    from torch.nn.attention import varlen

    torch.nn.attention.activate_flash_attention_impl("tallow")
    starts = torch.tensor([0, 3, 3, 9], dtype=torch.int32)
    q, k, v = (normal(9, 2, 16).requires_grad_() for _ in range(3))
    for window in ((-1, -1), (-1, 0), (2, 0), (1, 1)):
        out = varlen.varlen_attn(q, k, v, starts, starts, 6, 6, window_size=window)
        grads = torch.autograd.grad(out.square().sum(), (q, k, v))
        wanted = flash_attn.flash_attn_varlen_func(
            q, k, v, starts, starts, 6, 6, window_size=window)  # fmt: skip
        close(out, wanted)
        for a, b in zip(grads, torch.autograd.grad(wanted.square().sum(), (q, k, v))):
            close(a, b)
    q, k, v = normal(1, 4, 5, 16), normal(1, 2, 7, 16), normal(1, 2, 7, 16)
    operator = torch.ops.aten._scaled_dot_product_flash_attention
    out, lse, *_ = operator(q, k, v)
    close(out, REFERENCE(q, k, v, enable_gqa=True))
    assert lse.shape == (1, 4, 5)
    with pytest.raises(ValueError, match="dropout_p = 0.5: must be 0"):
        operator(q, k, v, 0.5)
    with pytest.raises(ValueError, match="return_debug_mask is True"):
        operator(q, k, v, 0.0, False, True)
    with pytest.raises(ValueError, match="seqused_k is given"):
        torch.ops.aten._flash_attention_forward(
            *(x.transpose(1, 2) for x in (q, k, v)), None, None, 5, 7, 0.0, False, False,
            seqused_k=starts)  # fmt: skip


def test_old_versions_have_no_registry(monkeypatch):
    monkeypatch.delattr(torch.nn.attention, "restore_flash_attention_impl", raising=False)
    with pytest.raises(RuntimeError, match="has no registry of flash attentions: needs 2.11"):
        sdpa.register()


# --------------------------------------------------------------------------------------------
# transformers
# --------------------------------------------------------------------------------------------


def model_of(kind, **options):
    transformers = pytest.importorskip("transformers")
    import tallow.transformers  # noqa: F401

    small = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 101,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**small | options)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


MODELS = {
    "Qwen2": {},
    "Mistral": {"sliding_window": 6},
    "Gemma2": {"sliding_window": 6, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
    "GptOss": {"sliding_window": 6, "num_local_experts": 2, "num_experts_per_tok": 1},
}


def logits(model, implementation, **inputs):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("kind", MODELS)
def test_models(kind, padding):
    """Causal, sliding window, softcap, sinks, grouped heads, padding: the same as eager."""
    model = model_of(kind, **MODELS[kind])
    ids = torch.randint(3, 101, (2, 13))
    mask = torch.ones_like(ids)
    if padding == "left":
        mask[1, :4] = 0
    elif padding == "right":
        mask[1, 9:] = 0
    wanted = logits(model, "eager", input_ids=ids, attention_mask=mask)
    found = logits(model, "tallow", input_ids=ids, attention_mask=mask)
    close(found[mask.bool()], wanted[mask.bool()], 2e-4)


def test_packed_positions():
    """Three texts side by side give what each gives alone."""
    model = model_of("Qwen2")
    ids = torch.randint(3, 101, (1, 12))
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3]])
    found = logits(model, "tallow", input_ids=ids, position_ids=positions, use_cache=False)
    for part in (slice(0, 3), slice(3, 8), slice(8, 12)):
        close(found[:, part], logits(model, "eager", input_ids=ids[:, part]), 2e-4)
    starts = torch.tensor([0, 3, 8, 12], dtype=torch.int32)
    given = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 5, "max_length_k": 5}
    again = logits(model, "tallow", input_ids=ids, position_ids=positions, use_cache=False, **given)
    close(again, found, 1e-6)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["Qwen2", "Mistral", "Gemma2"])
def test_generation(kind, cache):
    """Greedy tokens with a cache, left padded, are eager's."""
    model = model_of(kind, **MODELS[kind])
    ids = torch.randint(3, 101, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    found = {}
    for implementation in ("eager", "tallow"):
        model.set_attn_implementation(implementation)
        found[implementation] = model.generate(
            ids, attention_mask=mask, max_new_tokens=12, do_sample=False, disable_compile=True,
            cache_implementation=cache,
        )  # fmt: skip
    assert torch.equal(found["eager"], found["tallow"])


def test_qwen2_5_vl():
    """Text and pictures: M-RoPE positions, a vision tower with packed two-way windows."""
    transformers = pytest.importorskip("transformers")
    import tallow.transformers  # noqa: F401

    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 110,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 64, "spatial_merge_size": 2, "window_size": 16,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    torch.manual_seed(1)
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=101, video_token_id=102,
        vision_start_token_id=103, vision_end_token_id=104,
    )  # fmt: skip
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    picture = [103, *[101] * 12, 104]
    ids = torch.tensor([[5, 6, *picture, 7, 8, 9, 10]])
    inputs = {
        "input_ids": ids, "pixel_values": torch.randn(48, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 8, 6]]), "mm_token_type_ids": (ids == 101).int(),
    }  # fmt: skip
    wanted = logits(model, "eager", **inputs)
    assert not torch.allclose(wanted, logits(model, "eager", **inputs | {
        "pixel_values": torch.randn(48, 96)}), atol=1e-3)  # fmt: skip
    close(logits(model, "tallow", **inputs), wanted, 2e-4)


def test_tokens_in_bf16(capsys):
    """64 tokens with a cache, padded texts. A scale that is 5 % off is found out."""
    pytest.importorskip("transformers")
    import generation
    from transformers import AttentionInterface, masking_utils

    from tallow.transformers import attention_forward, attention_mask

    def wrong(*arguments, scaling, **options):
        return attention_forward(*arguments, scaling=1.05 * scaling, **options)

    AttentionInterface.register("wrong", wrong)
    masking_utils.AttentionMaskInterface.register("wrong", attention_mask)
    model = generation.build(
        "cpu", torch.bfloat16, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=1000,
        initializer_range=0.05)  # fmt: skip
    same, report = generation.compare(model, "tallow", seeds=20)
    with capsys.disabled():
        print(f"\n{report}")
    assert same >= 0.95 * 20
    assert generation.compare(model, "wrong", seeds=20)[0] < 0.5 * 20


def test_training():
    """Gradients of all weights, against eager."""
    model = model_of("Mistral", sliding_window=6)
    ids = torch.randint(3, 101, (2, 13))
    grads = {}
    for implementation in ("eager", "tallow"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        grads[implementation] = [p.grad.clone() for p in model.parameters()]
    for a, b in zip(grads["tallow"], grads["eager"]):
        close(a, b, 1e-4)


def test_what_models_ask_in_vain():
    model = model_of("Qwen2")
    from tallow.transformers import attention_forward

    q = torch.zeros(1, 2, 3, 16)
    with pytest.raises(ValueError, match="output_attentions is given"):
        attention_forward(model, q, q, q, None, output_attentions=True)
    with pytest.raises(ValueError, match="position_bias is given"):
        attention_forward(model, q, q, q, None, position_bias=q)
