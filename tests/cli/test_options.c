/* Flags and JSON, value by value. Complaints go to stderr and are read by command_line.cmake. */
#include <math.h>
#include <string.h>

#include "commands.h"
#include "expect.h"
#include "options.h"
#include "output.h"

static bool flag;
static int64_t integer;
static double number;
static const char *text;
static int choice;
static int_list list;

static const option OPTIONS[] = {
    {"--flag", OPTION_FLAG, &flag, ""},
    {"--integer", OPTION_INT, &integer, "", -5, 1e6},
    {"--any", OPTION_INT, &integer, ""},
    {"--number", OPTION_FLOAT, &number, "", 0, 2},
    {"--text", OPTION_TEXT, &text, ""},
    {"--choice", OPTION_CHOICE, &choice, "", .choices = {"red", "green"}},
    {"--list", OPTION_LIST, &list, "", 0, 1e6},
    {0},
};

static int parse_two(const char *first, const char *second) {
    static char words[3][64] = {"test"}; /* texts are kept by reference */
    char *argv[3] = {words[0], words[1], words[2]};
    const option_help help = {"test", "", "", OPTIONS};
    snprintf(words[1], sizeof words[1], "%s", first);
    snprintf(words[2], sizeof words[2], "%s", second ? second : "");
    return options_parse(&help, second ? 3 : 2, argv);
}

static void expect_int(const char *value, int64_t wanted) {
    integer = 77;
    int code = parse_two("--any", value);
    EXPECT(code == OPTIONS_OK && integer == wanted, "%s gave %lld", value, (long long)integer);
}

static void expect_refused(const char *first, const char *second) {
    int code = parse_two(first, second);
    EXPECT(code == EXIT_USAGE, "%s %s gave %d", first, second ? second : "", code);
}

static void test_accepted(void) {
    expect_int("12", 12);
    expect_int("-3", -3);
    expect_int("16k", 16384);
    expect_int("2m", 2097152);
    expect_int("1g", 1073741824);
    expect_int("9223372036854775807", INT64_MAX);
    EXPECT(parse_two("--integer=-5", NULL) == OPTIONS_OK && integer == -5, "with =");
    EXPECT(parse_two("--number", "1.5e0") == OPTIONS_OK && number == 1.5, "%g", number);
    EXPECT(parse_two("--text", "--flag") == OPTIONS_OK && !strcmp(text, "--flag") && !flag, "text");
    EXPECT(parse_two("--choice", "green") == OPTIONS_OK && choice == 1, "%d", choice);
    EXPECT(parse_two("--list", "1,2k,3") == OPTIONS_OK && list.count == 3, "%d", list.count);
    EXPECT(list.item[0] == 1 && list.item[1] == 2048 && list.item[2] == 3, "items");
    EXPECT(parse_two("--flag", NULL) == OPTIONS_OK && flag, "flag");
}

static void test_refused(void) {
    const char *const not_integers[] = {"",
                                        "x",
                                        "1x",
                                        "1kk",
                                        "1.5",
                                        "0x8",
                                        "1K",
                                        "k",
                                        "-6",
                                        "1000001",
                                        "9223372036854775808",
                                        "9007199254740992k"};
    for (size_t i = 0; i < sizeof not_integers / sizeof *not_integers; i++) {
        expect_refused("--integer", not_integers[i]);
    }
    expect_refused("--any", "9223372036854775808");
    expect_refused("--any", "9007199254740992k");
    expect_refused("--number", "nan");
    expect_refused("--number", "inf");
    expect_refused("--number", "2.1");
    expect_refused("--number", "1 ");
    expect_refused("--choice", "blue");
    expect_refused("--choice", "gree");
    expect_refused("--list", "1,,2");
    expect_refused("--list", "1,2,");
    expect_refused("--flag=1", NULL);
    expect_refused("--integer", NULL);
    expect_refused("--nothing", NULL);
    expect_refused("stray", NULL);
}

/* What the writer prints, read back from a file in stdout's place. */
static void test_json(void) {
    const char *wanted = "{\"a\":1,\"b\":[0.5,null,null,\"q\\\"\\\\\\u000a\"],\"c\":{},\"d\":true,"
                         "\"n\":-7,\"s\":\"1.10\"}\n";
    char got[256] = "";
    const char *lines = "n -7\ns 1.10\n";
    text_line line;
    json j = {0};
    if (!freopen("test_options.json", "w+", stdout)) return;
    json_open(&j, NULL, '{');
    json_integer(&j, "a", 1);
    json_open(&j, "b", '[');
    json_number(&j, NULL, 0.5);
    json_number(&j, NULL, (double)NAN);
    json_string(&j, NULL, NULL);
    json_string(&j, NULL, "q\"\\\n");
    json_close(&j, ']');
    json_open(&j, "c", '{');
    json_close(&j, '}');
    json_bool(&j, "d", true);
    while (next_line(&lines, &line)) json_line(&j, &line);
    json_close(&j, '}');
    rewind(stdout);
    EXPECT(fgets(got, sizeof got, stdout) && strcmp(got, wanted) == 0, "%s", got);
}

int main(void) {
    test_accepted();
    test_refused();
    test_json();
    return expect_report();
}
