"""python -m tallow.divergence and python -m tallow.plot."""

import csv
import json

import pytest

BANDS = [
    {"from": a, "to": b, "n": 3, "variants": {v: {"p95": p, "mean": p, "min": p} for v in names}}
    for a, b, p, names in ((0, 200, 0.99, ("exact", "bf16")), (200, 500, 0.9, ("exact", "bf16")))
]
CALLS = [
    {"case": "prefill", "gflops": 120.0, "fraction_of_peak": 0.8},
    {"case": "decode", "gflops": 3.0, "fraction_of_peak": 0.9},
]


def test_plot(tmp_path, capsys):
    """A file of bands, a file of calls with a first line that is none, an old and a wrong file."""
    matplotlib = pytest.importorskip("matplotlib")
    from tallow import plot

    (tmp_path / "bands.json").write_text(json.dumps({"gpu": "some", "result": {"bands": BANDS}}))
    lines = [{"cpu": "some", "cores": 2}, *CALLS]
    (tmp_path / "calls.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "pictures"
    plot.main([str(tmp_path / "bands.json"), str(tmp_path / "calls.jsonl"), "--out", str(out)])
    written = capsys.readouterr().out.split()
    assert sorted(written) == sorted(
        str(out / f"{name}.{kind}") for name in ("calls", "divergence") for kind in ("png", "svg")
    )
    assert (out / "calls.png").read_bytes().startswith(b"\x89PNG")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot.save(plot.bench("calls", CALLS), str(out / "words"), ["svg"])
        plot.save(plot.divergence({"bands": {"bands": BANDS}}), str(out / "lines"), ["svg"])
    words = (out / "words.svg").read_text()
    assert "prefill" in words and "120 (80% of peak)" in words and "GFLOP/s" in words
    assert "bf16" in (out / "lines.svg").read_text()
    (tmp_path / "wrong.json").write_text('{"x": 1}')
    with pytest.raises(SystemExit):
        plot.main([str(tmp_path / "wrong.json")])
    (tmp_path / "prose.json").write_text("no JSON")
    for name in ("missing.json", "prose.json"):
        with pytest.raises(SystemExit) as refused:
            plot.main([str(tmp_path / name)])
        assert refused.value.code == 2
    assert "has neither bands nor calls" in capsys.readouterr().err


def test_plotted_lines_are_the_numbers():
    pytest.importorskip("matplotlib")
    from tallow import plot

    axes = plot.divergence({"a": {"bands": BANDS}}).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[100, 350]] * 4
    assert [round(y, 6) for y in axes.lines[0].get_ydata()] == [0.01, 0.1]
    bars = plot.bench("b", CALLS).axes[0].patches
    assert [bar.get_width() for bar in bars] == [120.0, 3.0]


def test_runs_beside_other_libraries(tmp_path, capsys):
    """A panel for every mask, ours first; a causal square is half the work; decode in GB/s."""
    pytest.importorskip("matplotlib")
    from tallow import plot

    sizes = {"kind": "prefill", "B": 2, "H": 4, "HK": 4, "D": 64}
    cells = [
        sizes | {"Sq": s, "Sk": s, "causal": causal, "median_us": {"other": 10.0, "tallow": 5.0}}
        for s in (2048, 512)
        for causal in (False, True)
    ]
    one, other = plot.peers("name", "prefill", cells).axes
    assert [line.get_label() for line in one.lines] == ["Tallow", "other"]
    assert "causal" in one.get_title() and "no mask" in other.get_title()
    assert one.lines[0].get_xdata().tolist() == [512, 2048]
    operations = 2 * 2 * 64 * 2 * 4 * 2048**2
    assert other.lines[1].get_ydata()[1] == pytest.approx(operations / 10e-6 / 1e12)
    assert one.lines[0].get_ydata()[1] == pytest.approx(operations / 2 / 5e-6 / 1e12)
    decode = sizes | {"kind": "decode", "HK": 1, "Sq": 1, "Sk": 4096, "causal": False,
                      "median_us": {"tallow": 2.0}}  # fmt: skip
    (panel,) = plot.peers("name", "decode", [*cells, decode]).axes
    read = 2 * 2 * 2 * 4096 * 64  # bytes a number, K and V, batch
    assert panel.lines[0].get_ydata()[0] == pytest.approx(read / 2e-6 / 1e9)
    path = tmp_path / "peers.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"gpu": "G"}, *cells, decode])))
    plot.main([str(path), "--out", str(tmp_path), "--format", "svg"])
    assert capsys.readouterr().out.split() == [
        str(tmp_path / f"peers-{kind}.svg") for kind in ("prefill", "decode")
    ]


@pytest.fixture
def divergence():
    for name in ("torch", "transformers", "tqdm", "matplotlib"):
        pytest.importorskip(name)
    from tallow import divergence

    return divergence


FAST = ["--bands", "0,40,90", "--samples", "2", "--quiet", "--bisect-tokens", "64"]


def test_bf16_is_near_f32(divergence, tmp_path, capsys):
    prefix = tmp_path / "sub" / "run"
    assert divergence.main([*FAST, "--out", str(prefix)]) == 0
    assert "Guilty stage: none" in capsys.readouterr().out
    result = json.loads(prefix.with_suffix(".json").read_text())
    assert [(b["from"], b["to"], b["n"]) for b in result["bands"]] == [(0, 40, 2), (40, 90, 2)]
    for band in result["bands"]:
        assert 0.9999 < band["variants"]["tallow"]["min"] < 1
    assert [(s["layer"], s["stage"]) for s in result["stages"]] == [(-1, "layer")] + [
        (layer, stage) for layer in (0, 1) for stage in (
            "q_proj", "k_proj", "v_proj", "rotary_q", "rotary_k", "attention", "mlp", "layer")
    ]  # fmt: skip
    rows = list(csv.DictReader(prefix.with_suffix(".csv").open()))
    assert [row["attention"] for row in rows] == ["tallow", "tallow"]
    assert float(rows[0]["mean"]) == result["bands"][0]["variants"]["tallow"]["mean"]
    for name in ("run-stages.csv", "run.png", "run.svg"):
        assert (tmp_path / "sub" / name).stat().st_size > 100


def test_same_numbers_for_the_same_run(divergence, capsys):
    """Against itself: cosine 1 everywhere; json, another attention, repeatable."""
    arguments = [*FAST, "--json", "--attn", "sdpa", "--reference", "sdpa", "--dtype", "float32"]
    divergence.main(arguments)
    result = json.loads(capsys.readouterr().out)
    assert all(abs(1 - s["cosine"]) < 1e-12 and s["max_abs"] == 0 for s in result["stages"])
    divergence.main(arguments)
    again = json.loads(capsys.readouterr().out)
    assert again["bands"] == result["bands"]


@pytest.mark.parametrize("stage", ["k_proj", "attention", "mlp"])
def test_a_broken_stage_is_named(divergence, stage, monkeypatch):
    """A stage of layer 1 that writes with two bits of mantissa, as f8 would."""
    import torch

    def coarse(x):
        return (x.float().view(torch.int32) & ~((1 << 21) - 1)).view(torch.float32).to(x.dtype)

    from transformers import AttentionInterface

    from tallow import transformers as registered

    load = divergence.load

    def broken(*arguments):
        model, weights = load(*arguments)
        layer = model.layers[1]
        if stage != "attention":
            module = layer.mlp if stage == "mlp" else layer.self_attn.k_proj
            # Only the candidate is bf16; hooks are copied with the model.
            module.register_forward_hook(
                lambda _m, _i, out: coarse(out) if out.dtype == torch.bfloat16 else out
            )
        return model, weights

    def attention(module, *arguments, **options):
        out, _ = registered.attention_forward(module, *arguments, **options)
        return coarse(out) if stage == "attention" and module.layer_idx == 1 else out, None

    monkeypatch.setattr(divergence, "load", broken)
    monkeypatch.setitem(AttentionInterface._global_mapping, "tallow", attention)
    result = divergence.measure(divergence.parse(FAST))
    assert result["guilty_stage"] == f"layer 1, {stage}"


def test_texts_and_folders(divergence, tmp_path, capsys):
    """A folder with a config alone gets seeded weights, with weights its own; too short a text."""
    import torch
    import transformers

    config = transformers.Qwen2Config(**divergence.CONFIGS["tiny"])
    config.save_pretrained(tmp_path)
    _, weights = divergence.load(str(tmp_path), torch.float32, 3, "cpu")
    assert weights == "seed 3 on cpu"
    model = transformers.AutoModel.from_config(config)
    model.save_pretrained(tmp_path)
    loaded, weights = divergence.load(str(tmp_path), torch.float32, 3, "cpu")
    assert weights == str(tmp_path)
    assert torch.equal(loaded.embed_tokens.weight, model.embed_tokens.weight)
    with pytest.raises(SystemExit):
        divergence.parse(["--bands", "5,5"])
    assert "must be rising numbers" in capsys.readouterr().err


def test_texts_of_a_file(divergence, tmp_path, monkeypatch):
    """Cut from the file by the model's own tokenizer; the file must be long enough."""
    import tokenizers
    import transformers

    words = {f"w{n}": n for n in range(100)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", {"tiny": fast}.get)
    (tmp_path / "texts.txt").write_text(" ".join(words))
    given = [*FAST, "--texts", str(tmp_path / "texts.txt")]
    for band, ids in divergence.texts(divergence.parse(given), 1000):
        first, n = int(ids[0, 0]), ids.shape[1]
        assert ids[0].tolist() == list(range(first, first + n))
        assert (1, 40)[band] <= n < (40, 90)[band]
    with pytest.raises(SystemExit, match="100 tokens, the last band needs 500"):
        divergence.texts(divergence.parse([*given, "--bands", "0,500"]), 1000)


def test_summary(divergence):
    cosines = [1 - n / 1000 for n in range(40)]
    found = divergence.summary(cosines)
    assert found["min"] == min(cosines) and sum(c >= found["p95"] for c in cosines) == 38
    assert divergence.summary(cosines[:10])["p95"] == min(cosines[:10])
