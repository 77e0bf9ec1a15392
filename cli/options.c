#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"

int options_error(const char *name, const char *format, ...) {
    va_list arguments;
    fprintf(stderr, "tallow %s: ", name);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    return EXIT_USAGE;
}

/* The factor of a size suffix, 0 when it is none. */
static int64_t suffix_factor(const char *suffix) {
    if (suffix[0] == '\0') return 1;
    if (suffix[1] != '\0') return 0;
    switch (suffix[0]) {
    case 'k': return INT64_C(1) << 10;
    case 'm': return INT64_C(1) << 20;
    case 'g': return INT64_C(1) << 30;
    default: return 0;
    }
}

static bool in_range(const option *o, double value) {
    return o->low == o->high || (value >= o->low && value <= o->high);
}

static bool parse_int(const option *o, const char *text, int64_t *out) {
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    int64_t factor = suffix_factor(end);
    if (end == text || errno != 0 || factor == 0) return false;
    if (number > INT64_MAX / factor || number < INT64_MIN / factor) return false;
    *out = number * factor;
    return in_range(o, (double)*out);
}

static bool parse_float(const option *o, const char *text, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out) && in_range(o, *out);
}

static bool parse_choice(const option *o, const char *text, int *out) {
    for (int i = 0; i < OPTION_CHOICES && o->choices[i]; i++) {
        if (strcmp(o->choices[i], text) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

static bool parse_list(const option *o, const char *text, int_list *out) {
    char word[32];
    out->count = 0;
    for (;;) {
        size_t length = strcspn(text, ",");
        if (length >= sizeof word || out->count == INT_LIST_CAPACITY) return false;
        memcpy(word, text, length);
        word[length] = '\0';
        if (!parse_int(o, word, &out->item[out->count++])) return false;
        if (text[length] == '\0') return true;
        text += length + 1;
    }
}

static bool parse_value(const option *o, const char *text) {
    switch (o->kind) {
    case OPTION_INT: return parse_int(o, text, o->value);
    case OPTION_FLOAT: return parse_float(o, text, o->value);
    case OPTION_CHOICE: return parse_choice(o, text, o->value);
    case OPTION_LIST: return parse_list(o, text, o->value);
    case OPTION_TEXT: *(const char **)o->value = text; return true;
    case OPTION_FLAG: break;
    }
    return false;
}

/* What a flag accepts, in words. */
static void accepted(const option *o, char *text, size_t size) {
    const char *noun = o->kind == OPTION_LIST    ? "integers separated by commas"
                       : o->kind == OPTION_INT   ? "an integer"
                       : o->kind == OPTION_FLOAT ? "a number"
                                                 : "text";
    if (o->kind == OPTION_CHOICE) {
        size_t at = 0;
        text[0] = '\0';
        for (int i = 0; i < OPTION_CHOICES && o->choices[i] && at < size; i++) {
            at += (size_t)snprintf(text + at, size - at, "%s%s", i ? "|" : "", o->choices[i]);
        }
    } else if (o->low == o->high || o->kind == OPTION_TEXT) {
        snprintf(text, size, "%s", noun);
    } else if (o->high >= 9e18) {
        snprintf(text, size, "%s from %.10g", noun, o->low);
    } else {
        snprintf(text, size, "%s from %.10g to %.10g", noun, o->low, o->high);
    }
}

static void print_default(const option *o) {
    const int_list *list = o->value;
    switch (o->kind) {
    case OPTION_INT: printf(" [%lld]", (long long)*(int64_t *)o->value); break;
    case OPTION_FLOAT: printf(" [%g]", *(double *)o->value); break;
    case OPTION_CHOICE: printf(" [%s]", o->choices[*(int *)o->value]); break;
    case OPTION_TEXT:
        if (*(const char **)o->value) printf(" [%s]", *(const char **)o->value);
        break;
    case OPTION_LIST:
        for (int i = 0; i < list->count; i++) {
            printf("%s%lld", i ? "," : " [", (long long)list->item[i]);
        }
        printf("%s", list->count ? "]" : "");
        break;
    case OPTION_FLAG: break;
    }
}

static void print_help(const option_help *help) {
    char text[256];
    printf("usage: tallow %s [flags]\n\n%s\n\nflags (defaults in brackets):\n", help->name,
           help->summary);
    for (const option *o = help->options; o->name; o++) {
        printf("  %-18s %s", o->name, o->help);
        if (o->kind != OPTION_FLAG && o->kind != OPTION_TEXT) {
            accepted(o, text, sizeof text);
            printf("; %s", text);
        }
        print_default(o);
        printf("\n");
    }
    printf("  %-18s %s\n", "--help", "this text");
    printf("\nIntegers take the suffixes k, m and g: 16k is 16384.\n\nexamples:\n%s",
           help->examples);
}

/* Levenshtein distance of two flag names; names longer than a row are as far as can be. */
static int distance(const char *a, const char *b) {
    enum { LONGEST = 40 };
    int row[LONGEST + 1];
    int width = (int)strlen(b);
    if (width > LONGEST) return LONGEST;
    for (int j = 0; j <= width; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= width; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (best > row[j] + 1) best = row[j] + 1;
            if (best > row[j - 1] + 1) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[width];
}

static int unknown_flag(const option_help *help, const char *name) {
    const option *nearest = help->options;
    for (const option *o = help->options; o->name; o++) {
        if (distance(name, o->name) < distance(name, nearest->name)) nearest = o;
    }
    fprintf(stderr, "tallow %s: unknown flag %s", help->name, name);
    if (nearest->name && distance(name, nearest->name) <= 3) {
        fprintf(stderr, "; did you mean %s?", nearest->name);
    }
    fprintf(stderr, "\naccepted:");
    for (const option *o = help->options; o->name; o++) fprintf(stderr, " %s", o->name);
    fprintf(stderr, " --help\n");
    return EXIT_USAGE;
}

static const option *find(const option_help *help, const char *name, size_t length) {
    for (const option *o = help->options; o->name; o++) {
        if (strlen(o->name) == length && memcmp(o->name, name, length) == 0) return o;
    }
    return NULL;
}

/* Takes the flag at argv[*at] and its value, leaving *at on the last word used. */
static int parse_one(const option_help *help, int argc, char **argv, int *at) {
    const char *word = argv[*at];
    const char *equals = strchr(word, '=');
    const char *value = equals ? equals + 1 : NULL;
    const option *o = find(help, word, equals ? (size_t)(equals - word) : strlen(word));
    char text[256];

    if (!o) return unknown_flag(help, word);
    if (o->kind == OPTION_FLAG) {
        if (value) return options_error(help->name, "%s takes no value", o->name);
        *(bool *)o->value = true;
        return OPTIONS_OK;
    }
    accepted(o, text, sizeof text);
    if (!value && ++*at < argc) value = argv[*at];
    if (!value) return options_error(help->name, "%s needs a value: %s", o->name, text);
    if (!parse_value(o, value)) {
        return options_error(help->name, "%s is %s, accepted: %s", o->name, value, text);
    }
    return OPTIONS_OK;
}

int options_parse(const option_help *help, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help(help);
            return EXIT_DONE;
        }
    }
    for (int i = 1; i < argc; i++) {
        int code = parse_one(help, argc, argv, &i);
        if (code != OPTIONS_OK) return code;
    }
    return OPTIONS_OK;
}
