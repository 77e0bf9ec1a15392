#!/usr/bin/env python3
"""Breaks the library on purpose, one line at a time, and reports what no test notices.

    tests/mutations/run.py [--build DIR] [--only REGEX] [--check]

mutations.txt holds the table: a semantic, a file, the text as it is and the text broken. Each is
applied to a copy of the tree, built for the narrowest instruction set and run against the tests.
Where a level stands behind the file, all instruction sets are built, on a CPU that has that one.
GPU kernels run on the emulated GPU.
Exit code 1: a mutation survived, or its text is not found once and only once. --check only looks
for the texts.
"""
import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARTS = ["CMakeLists.txt", "cmake", "docs", "include", "kernels", "src", "tests"]
# From fast to slow; the first that fails has noticed.
TESTS = ["test_reference", "test_properties", "test_convert", "test_rotary", "test_cpu_rotary",
         "test_cpu_merge", "test_error", "test_cpu_features", "test_problem", "test_problem_valid",
         "test_attention 1 150"]
EMULATED = ["test_cuda", "emulated_driver", "emulated_compiler"]
TIMEOUT = 600
CPU_FLAGS = {"avx2": "avx2", "avx512": "avx512f", "avx512bf16": "avx512_bf16"}


class Mutation:
    def __init__(self, block):
        lines = block.strip("\n").split("\n")
        self.semantic = lines[0].strip("[]")
        self.file, *level = lines[1].split()
        self.level = level[0] if level else None
        self.kind = ("emulated" if self.file.startswith("kernels/") else
                     "wide" if self.level else "narrow")
        self.old = "\n".join(line[2:] for line in lines[2:] if line.startswith("-"))
        self.new = "\n".join(line[2:] for line in lines[2:] if line.startswith("+"))

    def pattern(self):
        """The old text, however its white space is laid out."""
        words = [re.escape(word) for word in self.old.split()]
        return re.compile(r"\s+".join(words))

    def places(self):
        return len(self.pattern().findall((ROOT / self.file).read_text()))

    def apply(self, tree):
        path = tree / self.file
        before = path.read_text()
        path.write_text(self.pattern().sub(lambda match: self.new, before))
        return before


    def cpu_lacks_level(self):
        flags = pathlib.Path("/proc/cpuinfo").read_text().split()
        return self.level is not None and CPU_FLAGS[self.level] not in flags


def read_table():
    text = (pathlib.Path(__file__).parent / "mutations.txt").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.M)
    return [Mutation(block) for block in re.split(r"\n\n+", text.strip("\n"))]


class Build:
    """A build of the copied tree: "wide" with every instruction set, "narrow" with the narrowest,
    "emulated" for the GPU kernels."""

    def __init__(self, tree, folder, kind):
        self.folder, self.kind = folder, kind
        command = ["cmake", "-S", tree, "-B", folder, "-DCMAKE_BUILD_TYPE=Release",
                   "-DTALLOW_CLI=OFF", "-DTALLOW_CANDLE=OFF", "-DTALLOW_INSTALL=OFF",
                   "-DTALLOW_WERROR=OFF"]
        if kind == "narrow":
            command += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=any"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def make(self):
        emulated = self.kind == "emulated"
        targets = EMULATED if emulated else [test.split()[0] for test in TESTS]
        result = subprocess.run(["cmake", "--build", self.folder, "-j2", "--target", *targets],
                                capture_output=True, text=True)
        return result.returncode == 0

    def emulated_failure(self):
        result = subprocess.run(["ctest", "--test-dir", self.folder, "-R", "emulated_cuda", "-j2",
                                 "--stop-on-failure", "--timeout", str(TIMEOUT)],
                                capture_output=True)
        return "emulated_cuda" if result.returncode else None

    def first_failure(self):
        """The name of the test that notices; None when all pass."""
        if self.kind == "emulated":
            return self.emulated_failure()
        for test in TESTS:
            name, *arguments = test.split()
            try:
                result = subprocess.run([self.folder / "tests" / name, *arguments],
                                        capture_output=True, timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                return name + " (never ends)"
            if result.returncode != 0:
                return name
        return None


def outcome(mutation, build, tree):
    before = mutation.apply(tree)
    try:
        if not build.make():
            return "DOES NOT BUILD"
        return build.first_failure() or "SURVIVED"
    finally:
        (tree / mutation.file).write_text(before)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", help="folder to build in, kept; else a temporary one")
    parser.add_argument("--only", default="", help="mutations whose semantic matches this")
    parser.add_argument("--check", action="store_true", help="only look for the texts")
    options = parser.parse_args()
    table = [m for m in read_table() if re.search(options.only, m.semantic)]
    bad = [m for m in table if m.places() != 1]
    for m in bad:
        print(f"{m.semantic}: found {m.places()} times in {m.file}: {m.old}")
    print(f"{len(table)} mutations, {len(bad)} of which do not fit the sources", flush=True)
    if bad or options.check:
        return 1 if bad else 0

    folder = pathlib.Path(options.build or tempfile.mkdtemp(prefix="tallow-mutations-"))
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for part in PARTS:
        source = ROOT / part
        # as new files: a kept build must not take one for what a mutation before left
        if source.is_dir():
            shutil.copytree(source, tree / part, copy_function=shutil.copy)
        else:
            shutil.copy(source, tree / part)
    builds = {}
    survivors = 0
    for m in table:
        if m.cpu_lacks_level():
            print(f"{'skipped':24}         {m.semantic}: this CPU lacks {m.level}", flush=True)
            continue
        if m.kind not in builds:
            builds[m.kind] = Build(tree, folder / m.kind, m.kind)
            if not builds[m.kind].make() or builds[m.kind].first_failure():
                print("the tests fail before anything is broken")
                return 1
        start = time.monotonic()
        result = outcome(m, builds[m.kind], tree)
        survivors += result.isupper()
        print(f"{result:24} {time.monotonic() - start:4.0f} s  {m.semantic}", flush=True)
    print(f"{survivors} survived")
    if not options.build:
        shutil.rmtree(folder)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
