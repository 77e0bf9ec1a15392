#include <stdio.h>

#include "commands.h"
#include "shape.h"

static void print_json(const char *text) {
    json j = {0};
    text_line line;
    json_open(&j, NULL, '{');
    while (next_line(&text, &line)) json_line(&j, &line);
    json_close(&j, '}');
}

int plan_main(int argc, char **argv) {
    char text[8192];
    bool as_json = false;
    shape s;
    option options[SHAPE_OPTIONS + 2] = {0};
    shape_options(&s, options);
    options[SHAPE_OPTIONS] = (option){"--json", OPTION_FLAG, &as_json, "print one JSON object"};
    const option_help help = {argv[0], "Says what a call with these shapes would run.",
                              "  tallow plan --seqlen 4096 --mask causal\n"
                              "  tallow plan --seqlen 1 --seqlen-k 32k --json\n",
                              options};
    int code = options_parse(&help, argc, argv);
    if (code == OPTIONS_OK) code = shape_check(argv[0], &s);
    if (code != OPTIONS_OK) return code;

    tallow_attention_params params = shape_params(&s);
    if (tallow_attention_describe(&params, sizeof params, text, sizeof text)) {
        return command_failed(argv[0]);
    }
    if (as_json) {
        print_json(text);
    } else {
        fputs(text, stdout);
    }
    return EXIT_DONE;
}
