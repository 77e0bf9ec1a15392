"""The C library that lies beside this file: its functions, and its statuses as exceptions."""

from __future__ import annotations

import ctypes
import functools
import glob
import importlib.util
import os
import re
from typing import Any

from . import _structs

INVALID_ARGUMENT = 1


class Error(RuntimeError):
    """A call that the library could not carry out; the text is the library's own.

    status: the name of the C status, such as "TALLOW_NO_DEVICE".
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{message} ({status})")
        self.status = status


def _load() -> ctypes.CDLL:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libtallow.so")
    library = ctypes.CDLL(path)
    for name in ("attention", "attention_prepare", "rotary", "merge"):
        getattr(library, f"tallow_{name}").argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.tallow_attention_workspace.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_size_t),
    ]
    library.tallow_attention_describe.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    library.tallow_attention_compile.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    library.tallow_system_describe.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.tallow_status_name.argtypes = [ctypes.c_int]
    library.tallow_status_name.restype = ctypes.c_char_p
    library.tallow_last_error.restype = ctypes.c_char_p
    library.tallow_version.restype = ctypes.c_uint32
    return library


_library = _load()


@functools.cache
def find_nvrtc() -> None:
    """Opens the NVRTC of the nvidia wheels, so that the library finds it by its name."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(glob.glob(os.path.join(folder, "c*", "lib", "libnvrtc.so.1*"))):
            try:
                _keep.append(ctypes.CDLL(path))
                return
            except OSError:
                continue


_keep: list[ctypes.CDLL] = []


def _in_words(message: str) -> str:
    """With dtypes by their names here, which C gives as numbers and enumerators."""
    names = {str(number): name for name, number in _structs.DTYPES.items()}
    names |= {
        "F16": "float16",
        "BF16": "bfloat16",
        "F32": "float32",
        "I32": "int32",
        "I64": "int64",
    }
    message = re.sub(r"(?<=dtype = )(\d)(?!\d)", lambda m: names.get(m[0], m[0]), message)
    return re.sub(r"TALLOW_(B?F16|F32|I32|I64)\b", lambda m: names[m[1]], message)


def _need_ok(status: int) -> None:
    if not status:
        return
    message = _in_words(_library.tallow_last_error().decode())
    if status == INVALID_ARGUMENT:
        raise ValueError(message)
    raise Error(_library.tallow_status_name(status).decode(), message)


def call(name: str, params: ctypes.Structure, *more: Any) -> None:
    """tallow_NAME(&params, sizeof params, ...); ctypes lets other Python threads run meanwhile."""
    function = getattr(_library, f"tallow_{name}")
    _need_ok(function(ctypes.addressof(params), ctypes.sizeof(params), *more))


def workspace_size(params: _structs.AttentionParams) -> int:
    size = ctypes.c_size_t()
    call("attention_workspace", params, ctypes.byref(size))
    return size.value


def _lines(text: ctypes.Array[ctypes.c_char]) -> dict[str, str]:
    """{name: value}; a name of several lines, such as gpu, has its values joined."""
    found: dict[str, str] = {}
    for line in text.value.decode().splitlines():
        name, _, value = line.partition(" ")
        found[name] = f"{found[name]}; {value}" if name in found else value
    return found


def describe_call(params: _structs.AttentionParams) -> dict[str, str]:
    text = ctypes.create_string_buffer(1 << 14)
    call("attention_describe", params, text, len(text))
    return _lines(text)


def compile_call(params: _structs.AttentionParams, arch: str) -> dict[str, str]:
    text = ctypes.create_string_buffer(1 << 14)
    call("attention_compile", params, arch.encode(), text, len(text))
    return _lines(text)


def system() -> dict[str, str]:
    """What this machine offers: version, CPU level, threads, GPUs, driver and NVRTC (or why there
    is none), cache folder."""
    find_nvrtc()
    text = ctypes.create_string_buffer(1 << 14)
    _need_ok(_library.tallow_system_describe(text, len(text)))
    return _lines(text)


def version() -> tuple[int, int, int]:
    """Version of the C library: major, minor, patch."""
    number = int(_library.tallow_version())
    return number // 1000000, number // 1000 % 1000, number % 1000
