#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "commands.h"
#include "compile_calls.h"
#include "options.h"
#include "output.h"
#include "tallow.h"

enum { MOST_PROCESSES = 1024, PATH_BYTES = 4096, ARCH_BYTES = 32, KERNEL_BYTES = 256 };

typedef struct {
    const char *archs, *path;
    bool cases, all, strict, as_json;
    int64_t processes;
    call_list list;
} request;

/* One kernel for one architecture, and a call that needs it. */
typedef struct {
    int call;
    char arch[ARCH_BYTES], kernel[KERNEL_BYTES];
} job;

typedef struct {
    job *jobs;
    int count, room;
} job_list;

/* What a process says of a job, short enough for a pipe to keep in one piece. */
typedef struct {
    int job, failed, compiled, spilled, serialized;
    char text[3800]; /* why it failed, or which kernel spills or is serialized */
} answer;

/* ---- what there is to compile ---- */

static bool add_job(job_list *list, const job *added) {
    for (int i = 0; i < list->count; i++) {
        const job *j = &list->jobs[i];
        if (!strcmp(j->arch, added->arch) && !strcmp(j->kernel, added->kernel)) return true;
    }
    if (list->count == list->room) {
        int room = list->room ? 2 * list->room : 256;
        job *jobs = realloc(list->jobs, (size_t)room * sizeof *jobs);
        if (!jobs) return fprintf(stderr, "tallow compile: out of memory\n"), false;
        list->jobs = jobs;
        list->room = room;
    }
    list->jobs[list->count++] = *added;
    return true;
}

/* The kernel of a call, if there is one for the architecture: what a GPU has no room for is no job.
 */
static bool add_call(job_list *list, const tallow_attention_params *params, job *added) {
    char text[1024];
    const char *at = text;
    text_line line;
    tallow_status status =
        tallow_attention_compile(params, sizeof *params, added->arch, text, sizeof text);
    if (status == TALLOW_UNSUPPORTED) return true;
    if (status) return command_failed("compile"), false;
    while (next_line(&at, &line))
        if (!strcmp(line.name, "kernel"))
            snprintf(added->kernel, sizeof added->kernel, "%.*s", KERNEL_BYTES - 1, line.value);
    return add_job(list, added);
}

/* All calls for the first word of `archs`, and so on. */
static bool list_jobs(const request *r, job_list *list) {
    attention_case c;
    bool ok = true;
    for (int i = 0; i < calls_count(r->list) && ok; i++) {
        calls_make(&c, r->list, i);
        for (const char *at = r->archs; *at && ok;) {
            size_t length = strcspn(at, ",");
            job added = {.call = i};
            snprintf(added.arch, sizeof added.arch, "%.*s", (int)length, at);
            ok = add_call(list, &c.params, &added);
            at += length + (at[length] == ',');
        }
        case_free(&c);
    }
    return ok;
}

/* ---- processes ---- */

static volatile sig_atomic_t stopped_by;

static void stop(int signal) { stopped_by = signal; }

static void run_job(const request *r, const char *pack, const job *j, answer *a) {
    char text[1024];
    const char *at = text;
    text_line line;
    attention_case c;
    calls_make(&c, r->list, j->call);
    c.params.pack = pack;
    a->failed = tallow_attention_compile(&c.params, sizeof c.params, j->arch, text, sizeof text);
    case_free(&c);
    if (a->failed) snprintf(a->text, sizeof a->text, "%s", tallow_last_error());
    while (!a->failed && next_line(&at, &line)) {
        if (!strcmp(line.name, "compiled")) a->compiled = atoi(line.value);
        if (!strcmp(line.name, "spilled")) a->spilled = atoi(line.value);
        if (!strcmp(line.name, "serialized")) a->serialized = atoi(line.value);
        if (!strcmp(line.name, "slow")) snprintf(a->text, sizeof a->text, "%s", line.value);
    }
}

/* Takes jobs until none is left, or nobody listens. */
static void work(const request *r, const char *pack, const job_list *list, atomic_int *next,
                 int out) {
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    for (int i; (i = atomic_fetch_add(next, 1)) < list->count;) {
        answer a = {.job = i};
        run_job(r, pack, &list->jobs[i], &a);
        if (write(out, &a, sizeof a) != (ssize_t)sizeof a) _exit(EXIT_FAILED);
        if (a.failed) break;
    }
    _exit(EXIT_DONE);
}

/* Adds up the answers as they come; after a failure no job is begun. */
static bool collect(FILE *in, const job_list *list, atomic_int *next, answer *sum) {
    answer a;
    int done = 0;
    while (!stopped_by && fread(&a, sizeof a, 1, in) == 1) {
        const job *j = &list->jobs[a.job];
        if (a.failed) {
            atomic_store(next, list->count);
            progress_end();
            if (!sum->failed) fprintf(stderr, "tallow compile: %s\n", a.text);
        }
        if (a.spilled + a.serialized > 0) {
            progress_end();
            fprintf(stderr, "tallow compile: %s for %s:%s%s\n", a.text, j->arch,
                    a.spilled ? " spills registers" : "", a.serialized ? " serializes" : "");
        }
        sum->failed |= a.failed;
        sum->compiled += a.compiled;
        sum->spilled += a.spilled;
        sum->serialized += a.serialized;
        progress("compile", ++done, list->count);
    }
    progress_end();
    if (stopped_by || sum->failed) return false;
    if (done < list->count)
        fprintf(stderr, "tallow compile: a process ended before its work was done\n");
    return done == list->count;
}

static int start_processes(const request *r, const char *pack, const job_list *list,
                           atomic_int *next, int out, pid_t *pids) {
    int count = 0;
    while (count < r->processes && count < list->count) {
        pids[count] = fork();
        if (pids[count] == 0) work(r, pack, list, next, out);
        if (pids[count] < 0) break;
        count++;
    }
    if (!count) fprintf(stderr, "tallow compile: fork: %s\n", strerror(errno));
    return count;
}

static bool compile_jobs(const request *r, const char *pack, const job_list *list, answer *sum) {
    pid_t pids[MOST_PROCESSES];
    int ends[2];
    atomic_int *next =
        mmap(NULL, sizeof *next, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (next == MAP_FAILED || pipe(ends)) {
        fprintf(stderr, "tallow compile: %s\n", strerror(errno));
        return false;
    }
    fflush(NULL);
    int count = start_processes(r, pack, list, next, ends[1], pids);
    close(ends[1]);
    FILE *in = fdopen(ends[0], "rb");
    bool ok = in && count > 0 && collect(in, list, next, sum);
    for (int i = 0; i < count && stopped_by; i++) kill(pids[i], SIGTERM);
    for (int i = 0; i < count; i++) waitpid(pids[i], NULL, 0);
    if (in) fclose(in);
    munmap(next, sizeof *next);
    return ok;
}

/* ---- the file ---- */

static int cannot_write(const char *path) {
    fprintf(stderr, "tallow compile: -o is %s: %s\n", path, strerror(errno));
    return EXIT_FAILED;
}

/* An empty file beside the pack, which takes its place when it is whole. */
static bool make_temporary(char temporary[PATH_BYTES], const char *path) {
    mode_t mask = umask(0);
    umask(mask);
    if (snprintf(temporary, PATH_BYTES, "%s.XXXXXX", path) >= PATH_BYTES)
        return errno = ENAMETOOLONG, false;
    int file = mkstemp(temporary);
    return file >= 0 && !fchmod(file, 0666 & ~mask) && !close(file);
}

/* Whole on the disk before it has the pack's name. */
static bool publish(const char *temporary, const char *path) {
    int file = open(temporary, O_RDONLY);
    bool ok = file >= 0 && !fsync(file);
    if (file >= 0) close(file);
    return ok && !rename(temporary, path);
}

static void print_summary(const request *r, const answer *sum, double seconds) {
    json j = {0};
    if (!r->as_json) {
        printf("%d kernels in %s, %d spill registers, %d serialize; %.0f s\n", sum->compiled,
               r->path, sum->spilled, sum->serialized, seconds);
        return;
    }
    json_open(&j, NULL, '{');
    json_integer(&j, "kernels", sum->compiled);
    json_integer(&j, "spilled", sum->spilled);
    json_integer(&j, "serialized", sum->serialized);
    json_number(&j, "seconds", seconds);
    json_close(&j, '}');
}

static int write_pack(const request *r, const job_list *list) {
    char temporary[PATH_BYTES];
    answer sum = {0};
    double started = seconds_now();
    struct sigaction action = {.sa_handler = stop};
    if (!make_temporary(temporary, r->path)) return cannot_write(r->path);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    bool ok = compile_jobs(r, temporary, list, &sum), moved = ok && publish(temporary, r->path);
    if (ok && !moved) cannot_write(r->path);
    if (!moved) unlink(temporary);
    if (stopped_by) {
        signal(stopped_by, SIG_DFL);
        raise(stopped_by);
    }
    if (!moved) return EXIT_FAILED;
    print_summary(r, &sum, seconds_now() - started);
    return r->strict && sum.spilled + sum.serialized > 0 ? EXIT_FAILED : EXIT_DONE;
}

/* ---- the command ---- */

static int check_rules(request *r) {
    if (r->cases && r->all)
        return options_error("compile", "--cases and --all are two lists, accepted: one of them");
    if (!*r->path) return options_error("compile", "-o is empty, accepted: the path of a file");
    for (const char *at = r->archs;; at++) {
        size_t length = strcspn(at, ",");
        if (length == 0 || length >= ARCH_BYTES)
            return options_error("compile",
                                 "--arch is %s, accepted: names such as sm_80, "
                                 "separated by commas",
                                 r->archs);
        at += length;
        if (!*at) break;
    }
    r->list = r->all ? CALLS_ALL : CALLS_CASES;
    return OPTIONS_OK;
}

int compile_main(int argc, char **argv) {
    const long processors = sysconf(_SC_NPROCESSORS_ONLN);
    request r = {.archs = "sm_80,sm_86,sm_89,sm_90a,sm_120",
                 .path = "tallow.pack",
                 .processes = processors < 1                ? 1
                              : processors < MOST_PROCESSES ? processors
                                                            : MOST_PROCESSES};
    job_list list = {0};
    const option options[] = {
        {"--arch", OPTION_TEXT, &r.archs, "GPUs to compile for, separated by commas"},
        {"-o", OPTION_TEXT, &r.path, "the pack to write"},
        {"--cases", OPTION_FLAG, &r.cases,
         "kernels of the calls that are tested and timed; the default"},
        {"--all", OPTION_FLAG, &r.all,
         "kernels of every dtype, head_dim and precision, dense and paged, whose rows are aligned"},
        {"--processes", OPTION_INT, &r.processes, "that compile at a time", 1, MOST_PROCESSES},
        {"--strict", OPTION_FLAG, &r.strict, "exit code 1 when a kernel spills or serializes"},
        {"--json", OPTION_FLAG, &r.as_json, "print one JSON object"},
        {0}};
    const option_help help = {
        argv[0],
        "Compiles kernels ahead of time into a pack, with NVRTC and without a GPU. A program uses\n"
        "the pack tallow.pack that lies beside libtallow.so or beside itself, and the one that a\n"
        "call names.",
        "  tallow compile --arch sm_80,sm_90a -o kernels.pack\n"
        "  tallow compile --arch sm_120 --all --processes 32 -o /usr/local/lib/tallow.pack\n",
        options};
    int code = options_parse(&help, argc, argv);
    if (code == OPTIONS_OK) code = check_rules(&r);
    if (code != OPTIONS_OK) return code;
    code = list_jobs(&r, &list) ? write_pack(&r, &list) : EXIT_FAILED;
    free(list.jobs);
    return code;
}
