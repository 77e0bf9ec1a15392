"""What a model generates with Tallow, beside what it does with torch's own attention."""

import torch


def build(device, dtype, **sizes):
    """A model like Qwen2.5 with random weights, and no token that ends a text."""
    import transformers

    torch.manual_seed(1)
    config = transformers.Qwen2Config(**sizes, rope_theta=1e6, pad_token_id=0, eos_token_id=None)
    with torch.device(device):
        return transformers.Qwen2ForCausalLM(config).to(dtype).eval()


def prompts(model, seeds):
    """A text of 5 to 40 tokens for each seed, padded on the left: input_ids, attention_mask."""
    ids = torch.zeros(seeds, 40, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        length = int(torch.randint(5, 41, (), generator=generator))
        text = torch.randint(1, model.config.vocab_size, (length,), generator=generator)
        ids[seed, -length:], mask[seed, -length:] = text, 1
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def spacing(x):
    """From one bf16 to the next, at x > 0."""
    return torch.exp2(torch.floor(torch.log2(x)) - 7)


class Ties:
    """Where the reference's logits of its own token and of the one about to be taken are as near as
    rounding to bf16 can turn around, its own is taken, and the tie is written down. Both logits are
    rounded in both runs, by half a step each: that is two steps. Other differences stay."""

    def __init__(self, tokens, logits):
        self.tokens, self.logits, self.step, self.found = tokens, logits, 0, []

    def __call__(self, input_ids, scores):
        taken, wanted = scores.argmax(-1, keepdim=True), self.tokens[:, self.step, None]
        logits = self.logits[:, self.step]
        top, other = logits.gather(1, wanted), logits.gather(1, taken)
        tied = (taken != wanted) & (top - other <= 2 * spacing(top))
        for seed in tied[:, 0].nonzero()[:, 0].tolist():
            self.found.append((seed, self.step, top[seed].item(), other[seed].item()))
        self.step += 1
        return torch.where(tied, torch.full_like(scores, -torch.inf).scatter(1, wanted, 0), scores)


def generate(model, attention, inputs, steps, *processors):
    """Tokens (seeds, steps), chosen greedily with a cache, and their logits."""
    model.set_attn_implementation(attention)
    found = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, use_cache=True, output_logits=True,
        return_dict_in_generate=True, logits_processor=list(processors))  # fmt: skip
    return found.sequences[:, -steps:], torch.stack(found.logits, 1).float()


def compare(model, attention, seeds, steps=64):
    """How many seeds give sdpa's tokens, and a report that names every tie."""
    inputs = prompts(model, seeds)
    tokens, logits = generate(model, "sdpa", inputs, steps)
    ties = Ties(tokens, logits)
    found, _ = generate(model, attention, inputs, steps, ties)
    same = (found == tokens).all(1)
    tied = {seed for seed, *_ in ties.found}
    alone = sum(bool(same[seed]) for seed in range(seeds) if seed not in tied)
    lines = [
        f"{attention} generates sdpa's {steps} tokens for {int(same.sum())} of {seeds} seeds, "
        f"for {alone} of them without a tie; ties in bf16: {len(ties.found)} of {tokens.numel()}"
    ]
    lines += [f"  seed {seed}, token {step}: logits {top:.6g} and {other:.6g}"
              for seed, step, top, other in ties.found]  # fmt: skip
    return int(same.sum()), "\n".join(lines)
