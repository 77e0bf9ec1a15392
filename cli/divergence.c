/* `tallow divergence`: how far the embedding of a text moves when rotary angles lose bits, by the
 * length of the text, and which stage of the decoder is to blame. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "divergence_bands.h"
#include "divergence_model.h"
#include "options.h"
#include "output.h"

static const char NAME[] = "divergence";

/* Decoders by name: --preset. The small one stands for the others in two minutes on two cores. */
static const geometry PRESETS[] = {
    {2, 256, 2, 1, 64, 512, 151936, 32768, 1e6, 0},
    {24, 896, 14, 2, 64, 4864, 151936, 32768, 1e6, 0},
    {36, 2048, 16, 2, 128, 11008, 151936, 32768, 1e6, 0},
};

typedef struct {
    int preset, device, damage; /* indices of the words that the flags accept */
    geometry g;
    int64_t seed, samples, samples_min, max_tokens;
    int_list edges;
    const char *variants;
    bool wanted[RUNS];
    bool json;
} settings;

/* The words of --inject are the first stages, by number, and none. */
enum { DAMAGE_NONE = STAGE_LAYER_0 };

static const settings DEFAULTS = {
    .seed = 1,
    .samples = 16,
    .edges = {11, {0, 200, 500, 1000, 2000, 4000, 8000, 12000, 16000, 20000, 25000}},
    .variants = "exact,f32,bf16",
    .damage = DAMAGE_NONE,
};

static int parse_variants(settings *s) {
    const char *word = s->variants;
    for (;;) {
        size_t length = strcspn(word, ",");
        int run = RUN_EXACT;
        while (run < RUNS &&
               (strlen(RUN_NAMES[run]) != length || memcmp(RUN_NAMES[run], word, length)))
            run++;
        if (run == RUNS) {
            return options_error(
                NAME, "--variants is %s, accepted: any of exact, f32, bf16, separated by commas",
                s->variants);
        }
        s->wanted[run] = true;
        if (word[length] == '\0') return OPTIONS_OK;
        word += length + 1;
    }
}

/* The rules that one flag alone cannot break. */
static int check(const settings *s) {
    if (s->g.heads % s->g.heads_kv != 0) {
        return options_error(NAME, "--heads-kv is %lld, accepted: a divisor of --heads %lld",
                             (long long)s->g.heads_kv, (long long)s->g.heads);
    }
    if (s->g.head_dim % 8 != 0) {
        return options_error(NAME, "--head-dim is %lld, accepted: a multiple of 8 from 8 to 256",
                             (long long)s->g.head_dim);
    }
    bool ascending = s->edges.count >= 2;
    for (int i = 1; i < s->edges.count; i++) {
        ascending = ascending && s->edges.item[i - 1] < s->edges.item[i];
    }
    if (!ascending) {
        return options_error(NAME,
                             "--bands must be two ascending edges or more, such as 0,200,500");
    }
    if (s->max_tokens && s->max_tokens <= s->edges.item[0]) {
        return options_error(NAME,
                             "--max-tokens is %lld, accepted: 0, or more than the first edge "
                             "of --bands, %lld",
                             (long long)s->max_tokens, (long long)s->edges.item[0]);
    }
    return OPTIONS_OK;
}

static int parse(settings *s, int argc, char **argv) {
    geometry *g = &s->g;
    const option options[] = {
        {"--preset", OPTION_CHOICE, &s->preset,
         "sizes of the decoder, before other flags change them",
         .choices = {"small", "qwen2.5-0.5b", "qwen2.5-3b"}},
        {"--layers", OPTION_INT, &g->layers, "decoder layers", 1, 1000},
        {"--hidden", OPTION_INT, &g->hidden, "width of the residual stream", 8, 65536},
        {"--heads", OPTION_INT, &g->heads, "query heads", 1, 1024},
        {"--heads-kv", OPTION_INT, &g->heads_kv, "key and value heads", 1, 1024},
        {"--head-dim", OPTION_INT, &g->head_dim, "width of a head, a multiple of 8", 8, 256},
        {"--intermediate", OPTION_INT, &g->intermediate, "width of the MLP", 8, 262144},
        {"--vocab", OPTION_INT, &g->vocab, "tokens to draw from", 2, 1 << 24},
        {"--window", OPTION_INT, &g->window, "tokens a query sees, its own included", 1, 1 << 24},
        {"--theta", OPTION_FLOAT, &g->theta, "base of the rotary frequencies", 10, 1e9},
        {"--bands", OPTION_LIST, &s->edges, "edges of the bands, in tokens", 0, 1 << 24},
        {"--max-tokens", OPTION_INT, &s->max_tokens, "cut the bands here; 0: do not", 0, 1 << 24},
        {"--samples", OPTION_INT, &s->samples,
         "samples of a band up to 2000 tokens; longer bands get fewer in proportion", 1, 10000},
        {"--samples-min", OPTION_INT, &s->samples_min,
         "but no fewer than this; 0: 3 on the CPU, 1 on a GPU", 0, 10000},
        {"--variants", OPTION_TEXT, &s->variants, "rotary angles: exact, f32, bf16"},
        {"--inject", OPTION_CHOICE, &s->damage,
         "degrade this stage of the first layer in every variant: the verdict should name it",
         .choices = {"embedding", "q_proj", "k_proj", "v_proj", "rotary_q", "rotary_k", "attention",
                     "none"}},
        {"--seed", OPTION_INT, &s->seed, "weights and tokens", 0, 9.2e18},
        {"--device", OPTION_CHOICE, &s->device, "where the decoder runs",
         .choices = {"cpu", "cuda"}},
        {"--json", OPTION_FLAG, &s->json, "one JSON object"},
        {0},
    };
    const option_help help = {
        NAME,
        "Runs texts of random tokens through a decoder of Qwen2.5's shape with seeded weights, "
        "once "
        "in\nf32 and f64, the reference, and once per variant in bf16; then compares the "
        "mean-pooled "
        "final\nhidden states by length, and the first layer stage by stage. docs/divergence.md "
        "explains.",
        "  tallow divergence\n"
        "  tallow divergence --json --max-tokens 4000 --samples 4\n"
        "  tallow divergence --variants exact --inject v_proj --max-tokens 2000\n"
        "  tallow divergence --preset qwen2.5-3b --bands 0,200,500,1000 --samples 2\n"
        "  tallow divergence --preset qwen2.5-3b --device cuda\n",
        options};
    /* The first pass finds the preset, the second puts the other flags on top of it. */
    *g = PRESETS[s->preset];
    int code = options_parse(&help, argc, argv);
    if (code != OPTIONS_OK) return code;
    *g = PRESETS[s->preset];
    options_parse(&help, argc, argv);
    g->seed = (uint64_t)s->seed;
    if (!s->samples_min) s->samples_min = s->device == TALLOW_DEVICE_CUDA ? 1 : 3;
    code = parse_variants(s);
    return code == OPTIONS_OK ? check(s) : code;
}

/* How far the work is, for the progress line. */
typedef struct {
    double done, total, started;
    int64_t tokens;
} work;

static void advance(void *context, double operations) {
    work *w = context;
    char text[96];
    w->done += operations;
    double left = (seconds_now() - w->started) * (w->total - w->done) / w->done;
    snprintf(text, sizeof text, "text of %lld tokens, about %.0f s left, percent",
             (long long)w->tokens, left);
    progress(text, (int64_t)(100 * w->done / w->total), 100);
}

/* A running measurement. */
typedef struct {
    const settings *s;
    band_set bands;
    decoder *d;
    stage_table stages;
    float *mean; /* (RUNS, hidden) */
    work work;
} measurement;

/* Compares the runs' mean hidden states over the first `tokens` tokens. */
static void compare_means(measurement *m, int64_t tokens, stage_difference of[RUNS]) {
    int64_t width = m->s->g.hidden;
    for (int run = 0; run < RUNS; run++) {
        if (run != RUN_REFERENCE && !m->s->wanted[run]) continue;
        decoder_pool(m->d, (run_kind)run, tokens, m->mean + run * width);
        of[run] = stage_compare(1, width, m->mean, width, m->mean + run * width, width);
    }
}

/* Runs a document and gives the bands their samples of it; the stage table too, if it is the one.
 */
static const char *measure_document(measurement *m, int64_t document, bool with_stages) {
    stage_difference of[RUNS] = {0};
    m->work.tokens = document_tokens(&m->bands, document);
    const char *error =
        decoder_run(m->d, (uint64_t)document, m->work.tokens, with_stages ? &m->stages : NULL,
                    &(work_meter){.advance = advance, .context = &m->work});
    if (error) return error;
    for (int i = 0; i < m->bands.count; i++) {
        band *b = &m->bands.band[i];
        if (document >= b->samples) continue;
        compare_means(m, band_tokens(&m->bands, i, document), of);
        for (int run = 0; run < RUNS; run++) {
            b->cosine[run * b->samples + document] = 1 - of[run].distance;
        }
    }
    if (with_stages) {
        compare_means(m, m->work.tokens, of);
        for (int run = 0; run < RUNS; run++) m->stages.of[run][STAGE_POOLED] = of[run];
    }
    return NULL;
}

/* The stage table is of the longest sample: the last one of the last band. */
static const char *measure(measurement *m) {
    int64_t documents = bands_documents(&m->bands);
    int64_t longest = m->bands.band[m->bands.count - 1].samples - 1;
    for (int64_t i = 0; i < documents; i++) {
        m->work.total += decoder_operations(m->d, document_tokens(&m->bands, i));
    }
    for (int64_t i = 0; i < documents; i++) {
        const char *error = measure_document(m, i, i == longest);
        if (error) return error;
    }
    return NULL;
}

static divergence_report summarise(const measurement *m) {
    const settings *s = m->s;
    const band_set *set = &m->bands;
    divergence_report r = {.g = s->g,
                           .bands = set->count,
                           .worst = RUN_REFERENCE,
                           .seconds = seconds_now() - m->work.started};
    memcpy(r.wanted, s->wanted, sizeof r.wanted);
    for (int i = 0; i < set->count; i++) {
        const band *b = &set->band[i];
        r.band[i] = (band_report){.from = b->from, .to = b->to, .samples = b->samples};
        for (int run = RUN_EXACT; run < RUNS; run++) {
            if (s->wanted[run]) r.band[i].of[run] = band_summary(b, (run_kind)run);
        }
    }
    const cosine_summary *last = r.band[r.bands - 1].of;
    for (int run = RUN_EXACT; run < RUNS; run++) {
        if (!s->wanted[run]) continue;
        if (r.worst == RUN_REFERENCE || last[run].p95 < last[r.worst].p95) r.worst = (run_kind)run;
    }
    int64_t sample = set->band[set->count - 1].samples - 1;
    r.stage_tokens = document_tokens(set, sample);
    memcpy(r.stages, m->stages.of[r.worst], sizeof r.stages);
    return r;
}

static const char *prepare(measurement *m) {
    const settings *s = m->s;
    const char *why;
    const operations *op =
        s->device == TALLOW_DEVICE_CUDA ? operations_cuda(&why) : operations_cpu();
    if (!op) return why;
    if (!bands_init(&m->bands, s->edges.count, s->edges.item, s->max_tokens, s->samples,
                    s->samples_min, s->g.seed)) {
        return "out of memory";
    }
    int64_t longest = 0;
    for (int64_t i = 0; i < bands_documents(&m->bands); i++) {
        int64_t tokens = document_tokens(&m->bands, i);
        if (tokens > longest) longest = tokens;
    }
    m->d = decoder_new(op, &s->g, longest, s->wanted);
    m->mean = calloc((size_t)(RUNS * s->g.hidden), sizeof *m->mean);
    if (m->d && m->mean) return NULL;
    return op->error() ? op->error() : "out of memory";
}

int divergence_main(int argc, char **argv) {
    settings s = DEFAULTS;
    int code = parse(&s, argc, argv);
    if (code != OPTIONS_OK) return code;

    measurement m = {.s = &s,
                     .stages = {.damaged = s.damage == DAMAGE_NONE ? STAGE_NONE : (stage)s.damage}};
    m.work.started = seconds_now();
    const char *error = prepare(&m);
    if (!error) error = measure(&m);
    progress_end();
    if (error) {
        fprintf(stderr, "tallow %s: %s\n", NAME, error);
    } else {
        divergence_report r = summarise(&m);
        (s.json ? divergence_json : divergence_print)(&r);
    }
    bands_free(&m.bands);
    decoder_free(m.d);
    stage_table_free(&m.stages);
    free(m.mean);
    return error ? EXIT_FAILED : EXIT_DONE;
}
