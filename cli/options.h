/* Flags of a command, declared as data: parsed, checked and explained from one table. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    OPTION_FLAG,   /* bool: true when given, takes no value */
    OPTION_INT,    /* int64_t, in [low, high]; 16k is 16384, 2m is 2097152 */
    OPTION_FLOAT,  /* double, in [low, high] */
    OPTION_TEXT,   /* const char *: any string, kept by reference */
    OPTION_CHOICE, /* int: index of the word in `choices` */
    OPTION_LIST    /* int_list: comma-separated OPTION_INTs */
} option_kind;

enum { OPTION_CHOICES = 12, INT_LIST_CAPACITY = 64 };

typedef struct {
    int count;
    int64_t item[INT_LIST_CAPACITY];
} int_list;

typedef struct {
    const char *name; /* with its dashes: "--seqlen" */
    option_kind kind;
    void *value;      /* holds the default before the parse, the answer after it */
    const char *help; /* one line; the accepted values and the default are added */
    double low, high; /* numbers: accepted range; low == high: any */
    const char *choices[OPTION_CHOICES]; /* OPTION_CHOICE: the words, then null */
} option;

typedef struct {
    const char *name;      /* of the command */
    const char *summary;   /* what it does: a line or a paragraph */
    const char *examples;  /* lines, each ending with \n */
    const option *options; /* up to the first with a null name */
} option_help;

enum { OPTIONS_OK = -1 };

/* Fills the options' values from argv[1..]. Returns OPTIONS_OK, or the exit code to leave with: 0
 * after --help, EXIT_USAGE after a complaint on stderr that names what would be accepted. Accepts
 * "--name value" and "--name=value". */
int options_parse(const option_help *help, int argc, char **argv);

/* Complains on stderr as the parser does, for a rule between flags; returns EXIT_USAGE. */
int options_error(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
