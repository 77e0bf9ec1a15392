/* libnvrtc.so.13 of an emulated GPU: preprocesses a kernel with the host's compiler, translates it,
 * and compiles the result to a library. */
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "image.h"

#define ENTRY extern "C" __attribute__((visibility("default"))) int
enum { OK = 0, OUT_OF_MEMORY = 1, INVALID_INPUT = 3, COMPILATION = 6 };

struct program {
    std::string name;
    std::vector<std::pair<std::string, std::string>> files;
    std::string log, image;
};

static std::string read_file(const std::string &path) {
    std::ifstream in(path, std::ios::binary);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
}

/* -DNAME=VALUE as it is, -arch=sm_90a as __CUDA_ARCH__; the rest is for a GPU alone. */
static std::string host_options(int count, const char *const *options) {
    std::string list;
    for (int i = 0; i < count; i++) {
        const std::string option = options[i];
        if (option.rfind("-D", 0) == 0) list += " '" + option + "'";
        if (option.rfind("-arch=sm_", 0) == 0)
            list += " -D__CUDA_ARCH__=" + std::to_string(atoi(options[i] + 9) * 10);
    }
    return list;
}

static bool compile(program *p, const std::string &folder, const std::string &options) {
    const std::string preprocess = EMULATOR_CXX " -E -P -nostdinc -I. -x c++ -std=c++17 -w";
    const std::string translate = EMULATOR_PYTHON " '" EMULATOR_FOLDER "/translate.py'";
    const std::string library = EMULATOR_CXX " -I'" EMULATOR_FOLDER "' " EMULATOR_FLAGS;
    const std::string command = "cd " + folder + " && : > stdint.h && { " + preprocess + options +
                                " " + p->name + " > text && " + translate +
                                " < text > kernel.cpp && " + library +
                                " -o kernel.so kernel.cpp; } 2> log";
    const bool ok = system(command.c_str()) == 0;
    p->log = read_file(folder + "/log");
    if (!ok) return false;
    const std::string compiled = read_file(folder + "/kernel.so");
    image_header header;
    memcpy(header.mark, IMAGE_MARK, sizeof header.mark);
    header.bytes = compiled.size();
    p->image.assign((const char *)&header, sizeof header);
    p->image += compiled;
    p->log += "0 bytes spill stores, 0 bytes spill loads\n";
    return true;
}

ENTRY nvrtcVersion(int *major, int *minor) { return *major = 13, *minor = 0, OK; }
ENTRY nvrtcGetNumSupportedArchs(int *count) { return *count = 8, OK; }
ENTRY nvrtcGetSupportedArchs(int *archs) {
    const int all[8] = {75, 80, 86, 87, 89, 90, 100, 120};
    return memcpy(archs, all, sizeof all), OK;
}
ENTRY nvrtcCreateProgram(void **out, const char *text, const char *name, int headers,
                         const char *const *texts, const char *const *names) {
    program *p = new program;
    p->name = name;
    p->files.emplace_back(name, text);
    for (int i = 0; i < headers; i++) p->files.emplace_back(names[i], texts[i]);
    return *out = p, OK;
}
ENTRY nvrtcCompileProgram(void *of, int count, const char *const *options) {
    program *p = (program *)of;
    char folder[] = "/tmp/emulator-XXXXXX";
    if (!mkdtemp(folder)) return OUT_OF_MEMORY;
    for (const auto &file : p->files)
        std::ofstream(std::string(folder) + "/" + file.first) << file.second;
    const bool compiled = compile(p, folder, host_options(count, options));
    if (!getenv("EMULATOR_KEEP")) std::filesystem::remove_all(folder);
    return compiled ? OK : COMPILATION;
}
ENTRY nvrtcGetProgramLogSize(void *of, size_t *size) {
    return *size = ((program *)of)->log.size() + 1, OK;
}
ENTRY nvrtcGetProgramLog(void *of, char *log) {
    return strcpy(log, ((program *)of)->log.c_str()), OK;
}
ENTRY nvrtcGetCUBINSize(void *of, size_t *size) {
    return *size = ((program *)of)->image.size(), OK;
}
ENTRY nvrtcGetCUBIN(void *of, char *image) {
    const std::string &from = ((program *)of)->image;
    return memcpy(image, from.data(), from.size()), OK;
}
ENTRY nvrtcGetPTXSize(void *, size_t *) { return INVALID_INPUT; }
ENTRY nvrtcGetPTX(void *, char *) { return INVALID_INPUT; }
ENTRY nvrtcDestroyProgram(void **of) { return delete (program *)*of, *of = nullptr, OK; }
