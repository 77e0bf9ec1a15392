#!/usr/bin/env python3
"""Makes C++ of a preprocessed kernel: every asm statement becomes a call of instructions.h.

translate.py < preprocessed > C++
"""
import re
import sys

# What an asm statement's text has in it, and the function that does it; the first that fits.
INSTRUCTIONS = [
    (r"^$", None),
    (r"%tid\.x", "thread_index"),
    (r"%cluster_ctarank", "cluster_rank"),
    (r"mapa\.", "map_address"),
    (r"st\.async", "send_8"),
    (r"barrier\.cluster", "cluster_barrier"),
    (r"multicast::cluster", "copy_box_to_all"),
    (r"fence\.proxy\.async", "release_writes"),
    (r"griddepcontrol\.wait", "wait_for_launch_before"),
    (r"griddepcontrol\.launch_dependents", "allow_next_launch"),
    (r"fence|prefetch|setmaxnreg", "nothing"),
    (r"cvt\.rn\.bf16x2", "pack_bf16"),
    (r"cvt\.rn\.f16x2|mov\.b32 %0, \{l, h\}", "pack_f16"),
    (r"mov\.b32 \{l, h\}", "unpack_f16"),
    (r"cvt\.rn\.f16\.f32", "narrow_f16"),
    (r"cvt\.f32\.f16", "widen_f16"),
    (r"fma\.rn\.bf16x2", "multiply_add_bf16"),
    (r"fma\.rn\.f16x2", "multiply_add_f16"),
    (r"ex2\.approx", "exp2_approx"),
    (r"rcp\.approx", "reciprocal_approx"),
    (r"^add\.f32", "add"),
    (r"ld\.shared\.v4", "load_four"),
    (r"st\.shared\.v4", "store_four"),
    (r"ld\.shared", "load"),
    (r"st\.shared", "store"),
    (r"bar\.sync %0, (\d+)", "block_barrier"),
    (r"bar\.sync %0, %1", "block_barrier"),
    (r"cp\.async\.cg", "copy_16"),
    (r"cp\.async\.ca", "copy_4"),
    (r"cp\.async\.commit_group", "commit_copies"),
    (r"cp\.async\.wait_group", "wait_copies"),
    (r"mbarrier\.init", "init_mbarrier"),
    (r"mbarrier\.arrive\.expect_tx", "arrive_expect"),
    (r"mbarrier\.arrive", "arrive"),
    (r"mbarrier\.test_wait", "test_wait"),
    (r"mbarrier\.try_wait", "try_wait"),
    (r"cp\.async\.bulk\.tensor.*bulk_group", "copy_box_out"),
    (r"cp\.async\.bulk\.tensor", "copy_box"),
    (r"cp\.async\.bulk\.commit_group", "nothing"),
    (r"cp\.async\.bulk\.wait_group", "wait_boxes"),
    (r"stmatrix.*x4", "stmatrix_4"),
    (r"ldmatrix.*x4\.trans", "ldmatrix_4<true>"),
    (r"ldmatrix.*x4", "ldmatrix_4"),
    (r"ldmatrix.*x2", "ldmatrix_2"),
    (r"mma\.sync.*m16n8k8", "mma_k8_f16"),
    (r"mma\.sync.*m16n8k16.*\.f16\.f16", "mma_k16<true>"),
    (r"mma\.sync.*m16n8k16.*\.bf16", "mma_k16<false>"),
    (r"wgmma\.commit_group", "wgmma_commit"),
    (r"wgmma\.wait_group\S* (\d+)", "wgmma_wait"),
    (r"wgmma\.mma_async", None),
]


def wgmma(text):
    columns = re.search(r"m64n(\d+)k16", text).group(1)
    f16 = "true" if ".f16.f16" in text else "false"
    kind = "registers" if "{%0, %1, %2, %3}" in text else "shared"
    return f"wgmma_{kind}<{f16}, {columns}>"


def function_of(text):
    """The call's name, and what it takes besides the operands."""
    for pattern, name in INSTRUCTIONS:
        found = re.search(pattern, text, re.S)
        if found and "wgmma.mma_async" in text:
            return wgmma(text), []
        if found:
            return name, list(found.groups())
    sys.exit(f"translate.py: no such instruction is known: {text}")


def split_at(text, mark):
    """Splits where `mark` stands outside of parentheses and strings."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, c in enumerate(text):
        if c == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted and c in "([{":
            depth += 1
        elif not quoted and c in ")]}":
            depth -= 1
        elif not quoted and depth == 0 and c == mark:
            parts.append(text[start:i])
            start = i + 1
    return parts + [text[start:]]


def end_of(text, start):
    """Behind the parenthesis that closes the one at `start`."""
    depth, quoted = 0, False
    for i in range(start, len(text)):
        c = text[i]
        if c == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted and c in "()":
            depth += 1 if c == "(" else -1
            if depth == 0:
                return i + 1
    sys.exit("translate.py: a parenthesis is not closed")


def operands(section):
    return [o.strip()[o.strip().index("(") + 1:-1] for o in split_at(section, ",") if o.strip()]


def call(inside):
    sections = split_at(inside, ":")
    text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', sections[0])).replace("\\n", "\n")
    arguments = [a for section in sections[1:3] for a in operands(section)]
    name, more = function_of(text)
    return f"instruction::{name}({', '.join(arguments + more)})" if name else "((void)0)"


def translate(text):
    entries = re.findall(r"(\w+)\s*\(const __grid_constant__ (\w+)", text)
    text = re.sub(r"const __grid_constant__ (\w+) (\w+)", r"const \1 &\2", text)
    clusters = re.findall(r"__cluster_dims__\((\d+)", text)
    together = clusters[0] if clusters else 1
    text = re.sub(r"extern __shared__ .*?;", "", text)
    text = text.replace("__shared__", "static")
    text = re.sub(r"^#pragma.*$", "", text, flags=re.M)
    parts, start = [], 0
    for found in re.finditer(r"\basm\s*(volatile)?\s*\(", text):
        if found.start() < start:
            continue
        end = end_of(text, found.end() - 1)
        parts += [text[start:found.start()], call(text[found.end():end - 1])]
        start = end
    sizes = [f'extern "C" __global__ unsigned {name}_bytes = sizeof({kind});\n'
             f'extern "C" __global__ unsigned {name}_together = {together};\n'
             for name, kind in entries]
    return "".join(parts) + text[start:] + "".join(sizes)


sys.stdout.write('#include "device.h"\n' + translate(sys.stdin.read()))
