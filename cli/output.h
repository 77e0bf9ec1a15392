/* What commands say: JSON on stdout, progress on a terminal. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

/* A JSON document on stdout, written in order. `key` is null inside arrays and at the top. Start
 * from a zeroed writer; json_close of the outermost bracket ends the line. */
typedef struct {
    bool comma; /* something stands before the next value */
    int depth;
} json;

void json_open(json *j, const char *key, char bracket);   /* '{' or '[' */
void json_close(json *j, char bracket);                   /* '}' or ']' */
void json_number(json *j, const char *key, double value); /* null when not finite */
void json_integer(json *j, const char *key, int64_t value);
void json_string(json *j, const char *key, const char *value); /* null when null */
void json_bool(json *j, const char *key, bool value);

/* "what: done of total" on stderr, only on a terminal and only for work that has lasted a second;
 * cheap enough for inner loops. progress_end wipes the line: call it before printing. */
void progress(const char *what, int64_t done, int64_t total);
void progress_end(void);

/* Seconds of a clock that never goes back. */
double seconds_now(void);

#endif
