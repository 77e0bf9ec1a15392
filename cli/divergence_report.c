#include "divergence_report.h"

#include <inttypes.h>
#include <stdio.h>

#include "output.h"

static void print_bands(const divergence_report *r) {
    printf("\n%15s", "");
    for (int run = RUN_EXACT; run < RUNS; run++) {
        if (r->wanted[run]) printf("  %26s", RUN_NAMES[run]);
    }
    printf("\n%11s %3s", "tokens", "n");
    for (int run = RUN_EXACT; run < RUNS; run++) {
        if (r->wanted[run]) printf("  %8s %8s %8s", "P95", "mean", "min");
    }
    printf("\n");
    for (const band_report *b = r->band; b < r->band + r->bands; b++) {
        printf("%5" PRId64 "-%-5" PRId64 " %3" PRId64, b->from, b->to, b->samples);
        for (int run = RUN_EXACT; run < RUNS; run++) {
            const cosine_summary *c = &b->of[run];
            if (r->wanted[run]) printf("  %.6f %.6f %.6f", c->p95, c->mean, c->min);
        }
        printf("\n");
    }
}

static void print_verdict(const divergence_report *r) {
    stage guilty = stage_guilty(r->stages);
    if (guilty == STAGE_NONE) {
        printf("\nNo stage is guilty: none is %.0f times as far from the reference as what it "
               "reads.\n",
               GUILTY_GROWTH);
        return;
    }
    double growth = stage_growth(r->stages, guilty), distance = r->stages[guilty].distance;
    printf("\nThe guilty stage is %s: what it reads is within 1 - cosine = %.1e of the reference, "
           "what "
           "it\nwrites is at %.1e, %.0f times as far; no other stage adds as much.\n",
           stage_verdict(guilty), distance / growth, distance, growth);
}

static void print_stages(const divergence_report *r) {
    printf("\nVariant %s, first layer, one sample of %" PRId64 " tokens\n\n%-10s %-11s %-11s %s\n",
           RUN_NAMES[r->worst], r->stage_tokens, "stage", "cosine", "1 - cosine",
           "max |difference|");
    for (int s = 0; s < STAGES; s++) {
        double distance = r->stages[s].distance;
        printf("%-10s %.9f %-11.1e %.2g\n", STAGE_NAMES[s], 1 - distance, distance,
               r->stages[s].max_abs);
    }
}

void divergence_print(const divergence_report *r) {
    const geometry *g = &r->g;
    printf("Decoder of %" PRId64 " layers, hidden %" PRId64 ", %" PRId64 "/%" PRId64
           " heads of %" PRId64 ", theta %g, seed %" PRIu64 ".\n"
           "Cosine of the mean-pooled hidden state with the reference (f32 activations, f64 "
           "attention and\nangles); the variants are bf16 throughout and differ in their rotary "
           "angles.\n",
           g->layers, g->hidden, g->heads, g->heads_kv, g->head_dim, g->theta, g->seed);
    print_bands(r);
    print_stages(r);
    print_verdict(r);
    printf("\n%.0f s\n", r->seconds);
}

static void json_bands(const divergence_report *r, json *j) {
    json_open(j, "bands", '[');
    for (const band_report *b = r->band; b < r->band + r->bands; b++) {
        json_open(j, NULL, '{');
        json_integer(j, "from", b->from);
        json_integer(j, "to", b->to);
        json_integer(j, "n", b->samples);
        json_open(j, "variants", '{');
        for (int run = RUN_EXACT; run < RUNS; run++) {
            if (!r->wanted[run]) continue;
            json_open(j, RUN_NAMES[run], '{');
            json_number(j, "p95", b->of[run].p95);
            json_number(j, "mean", b->of[run].mean);
            json_number(j, "min", b->of[run].min);
            json_close(j, '}');
        }
        json_close(j, '}');
        json_close(j, '}');
    }
    json_close(j, ']');
}

static void json_stages(const divergence_report *r, json *j) {
    json_open(j, "stages", '[');
    for (int s = 0; s < STAGES; s++) {
        json_open(j, NULL, '{');
        json_string(j, "stage", STAGE_NAMES[s]);
        json_number(j, "cosine", 1 - r->stages[s].distance);
        json_number(j, "max_abs", r->stages[s].max_abs);
        json_close(j, '}');
    }
    json_close(j, ']');
    json_string(j, "guilty_stage", stage_verdict(stage_guilty(r->stages)));
    json_string(j, "stage_variant", RUN_NAMES[r->worst]);
    json_integer(j, "stage_tokens", r->stage_tokens);
}

static void json_geometry(const geometry *g, json *j) {
    json_open(j, "geometry", '{');
    json_integer(j, "layers", g->layers);
    json_integer(j, "hidden", g->hidden);
    json_integer(j, "heads", g->heads);
    json_integer(j, "heads_kv", g->heads_kv);
    json_integer(j, "head_dim", g->head_dim);
    json_integer(j, "intermediate", g->intermediate);
    json_integer(j, "vocab", g->vocab);
    json_integer(j, "window", g->window);
    json_number(j, "theta", g->theta);
    json_close(j, '}');
    json_integer(j, "seed", (int64_t)g->seed);
}

void divergence_json(const divergence_report *r) {
    json j = {0};
    json_open(&j, NULL, '{');
    json_bands(r, &j);
    json_stages(r, &j);
    json_geometry(&r->g, &j);
    json_number(&j, "seconds", r->seconds);
    json_close(&j, '}');
}
