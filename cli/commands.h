/* The commands of `tallow`. The command line knows the library by tallow.h alone. */
#ifndef COMMANDS_H
#define COMMANDS_H

/* Exit codes: what a script can tell apart. */
enum {
    EXIT_DONE = 0,
    EXIT_FAILED = 1, /* the library reported an error, or a check did not hold */
    EXIT_USAGE = 2   /* the command line is wrong */
};

/* Each returns an exit code; argv[0] is the command's name, its flags follow. */
typedef struct {
    const char *name;
    const char *summary; /* one line */
    int (*run)(int argc, char **argv);
} command;

int info_main(int argc, char **argv);
int plan_main(int argc, char **argv);
int check_main(int argc, char **argv);
int bench_main(int argc, char **argv);
int compile_main(int argc, char **argv);
int divergence_main(int argc, char **argv);

/* Prints why the library refused, after the command's name; returns EXIT_FAILED. */
int command_failed(const char *name);

#endif
