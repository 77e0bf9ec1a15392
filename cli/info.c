#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "options.h"
#include "output.h"
#include "tallow.h"

/* The library's lines as JSON: every GPU is an element of "gpus", and the reason why there is none
 * is "no_gpu". */
static void print_json(const char *text) {
    json j = {0};
    text_line line;
    const char *no_gpu = NULL, *at = text;
    char reason[sizeof line.value];

    json_open(&j, NULL, '{');
    while (next_line(&at, &line)) {
        if (strcmp(line.name, "gpu") != 0) json_line(&j, &line);
    }
    json_open(&j, "gpus", '[');
    for (at = text; next_line(&at, &line);) {
        if (strcmp(line.name, "gpu") != 0) continue;
        if (strncmp(line.value, "none: ", 6) == 0) {
            no_gpu = strcpy(reason, line.value + 6);
        } else {
            json_string(&j, NULL, line.value);
        }
    }
    json_close(&j, ']');
    json_string(&j, "no_gpu", no_gpu);
    json_close(&j, '}');
}

int info_main(int argc, char **argv) {
    char text[8192];
    bool as_json = false;
    const option options[] = {{"--json", OPTION_FLAG, &as_json, "print one JSON object"}, {0}};
    const option_help help = {
        argv[0], "Says what this machine offers to Tallow, and why when something is missing.",
        "  tallow info\n"
        "  tallow info --json\n"
        "  TALLOW_CPU=avx2 tallow info      what a lowered instruction set looks like\n",
        options};
    int code = options_parse(&help, argc, argv);
    if (code != OPTIONS_OK) return code;
    if (tallow_system_describe(text, sizeof text)) return command_failed(argv[0]);
    if (as_json) {
        print_json(text);
    } else {
        fputs(text, stdout);
    }
    return EXIT_DONE;
}
