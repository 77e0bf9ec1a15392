#define _POSIX_C_SOURCE 200809L

#include "output.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void write_string(const char *text) {
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\') {
            printf("\\%c", *c);
        } else if (*c < 0x20) {
            printf("\\u%04x", *c);
        } else {
            putchar(*c);
        }
    }
    putchar('"');
}

/* The comma and the key that stand before a value. */
static void begin_value(json *j, const char *key) {
    if (j->comma) putchar(',');
    j->comma = true;
    if (key) {
        write_string(key);
        putchar(':');
    }
}

void json_open(json *j, const char *key, char bracket) {
    begin_value(j, key);
    putchar(bracket);
    j->comma = false;
    j->depth++;
}

void json_close(json *j, char bracket) {
    putchar(bracket);
    j->comma = true;
    if (--j->depth == 0) {
        putchar('\n');
        fflush(stdout);
        j->comma = false;
    }
}

void json_number(json *j, const char *key, double value) {
    begin_value(j, key);
    if (isfinite(value)) {
        printf("%.10g", value);
    } else {
        printf("null");
    }
}

void json_integer(json *j, const char *key, int64_t value) {
    begin_value(j, key);
    printf("%" PRId64, value);
}

void json_string(json *j, const char *key, const char *value) {
    begin_value(j, key);
    if (value) {
        write_string(value);
    } else {
        printf("null");
    }
}

void json_bool(json *j, const char *key, bool value) {
    begin_value(j, key);
    printf(value ? "true" : "false");
}

bool next_line(const char **text, text_line *line) {
    if (**text == '\0') return false;
    size_t length = strcspn(*text, "\n"), name = strcspn(*text, " \n");
    size_t value = name < length ? name + 1 : length;
    snprintf(line->name, sizeof line->name, "%.*s", (int)name, *text);
    snprintf(line->value, sizeof line->value, "%.*s", (int)(length - value), *text + value);
    *text += length + ((*text)[length] == '\n');
    return true;
}

void json_line(json *j, const text_line *line) {
    char *end;
    long long integer = strtoll(line->value, &end, 10);
    if (end != line->value && *end == '\0') {
        json_integer(j, line->name, integer);
    } else {
        json_string(j, line->name, line->value);
    }
}

double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* One line of progress at a time. */
static double progress_started, progress_shown;

void progress(const char *what, int64_t done, int64_t total) {
    double now = seconds_now();
    if (progress_started == 0) progress_started = now;
    if (now < progress_started + 1 || now < progress_shown + 0.1 || !isatty(STDERR_FILENO)) return;
    progress_shown = now;
    fprintf(stderr, "\r\033[K%s: %" PRId64 " of %" PRId64, what, done, total);
    fflush(stderr);
}

void progress_end(void) {
    if (progress_shown > 0) fprintf(stderr, "\r\033[K");
    progress_started = progress_shown = 0;
}
