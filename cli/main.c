#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "tallow.h"

static const command COMMANDS[] = {
    {"info", "what this machine offers: CPU level, threads, GPUs, cache folder", info_main},
    {"plan", "what a call with these shapes would run", plan_main},
    {"check", "random calls compared with plain f64 loops", check_main},
    {"bench", "time, throughput and fraction of this machine's peak", bench_main},
    {"compile", "kernels compiled ahead of time into a pack, without a GPU", compile_main},
    {"divergence", "how far rotary precision moves a decoder's embedding, by length",
     divergence_main},
};
enum { COMMAND_COUNT = sizeof COMMANDS / sizeof COMMANDS[0] };

int command_failed(const char *name) {
    fprintf(stderr, "tallow %s: %s\n", name, tallow_last_error());
    return EXIT_FAILED;
}

static void print_commands(FILE *file) {
    fprintf(file, "usage: tallow COMMAND [flags]\n\ncommands:\n");
    for (int i = 0; i < COMMAND_COUNT; i++) {
        fprintf(file, "  %-11s %s\n", COMMANDS[i].name, COMMANDS[i].summary);
    }
    fprintf(file, "\ntallow COMMAND --help explains its flags with examples.\n");
}

int main(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "--version") == 0) {
        unsigned version = tallow_version();
        printf("tallow %u.%u.%u\n", version / 1000000, version / 1000 % 1000, version % 1000);
        return EXIT_DONE;
    }
    if (argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        print_commands(stdout);
        return EXIT_DONE;
    }
    for (int i = 0; argc >= 2 && i < COMMAND_COUNT; i++) {
        if (strcmp(argv[1], COMMANDS[i].name) == 0) return COMMANDS[i].run(argc - 1, argv + 1);
    }
    if (argc >= 2) fprintf(stderr, "tallow: unknown command %s\n\n", argv[1]);
    print_commands(stderr);
    return EXIT_USAGE;
}
