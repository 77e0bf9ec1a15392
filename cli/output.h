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

/* A "name value" line of the library's descriptions, cut to what fits. */
typedef struct {
    char name[64], value[512];
} text_line;

/* Takes the next line off *text; false at its end. */
bool next_line(const char **text, text_line *line);

/* The line as a member: a number when the value is an integer, else a string. */
void json_line(json *j, const text_line *line);

/* "what: done of total" on stderr, only on a terminal and only for work that has lasted a second;
 * cheap enough for inner loops. progress_end wipes the line: call it before printing. */
void progress(const char *what, int64_t done, int64_t total);
void progress_end(void);

/* Seconds of a clock that never goes back. */
double seconds_now(void);

#endif
