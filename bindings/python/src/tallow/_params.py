"""Keywords into struct fields of the same names. Every call goes through here once."""

from __future__ import annotations

import ctypes
import functools
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import _arrays, _library
from ._arrays import View
from ._structs import CPU, CUDA, WORDS, RotaryAngles, Tensor

# Fields whose zero means a default other than zero. Python says that with None, so that a zero that
# somebody computed is not taken for it.
_NEVER_ZERO = {
    "softmax_scale": "1 / sqrt(head_dim)",
    "rotary_dim": "head_dim",
    "theta": "10000",
    "attention_factor": "1",
}

_INT_RANGES = {
    ctypes.c_int32: (-(2**31), 2**31 - 1),
    ctypes.c_int64: (-(2**63), 2**63 - 1),
    ctypes.c_uint64: (0, 2**64 - 1),
}


def _integer(name: str, value: Any, kind: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: {type(value).__name__}; must be an int") from None
    least, most = _INT_RANGES[kind]
    if not least <= number <= most:
        raise ValueError(f"{name} = {number}: must be {least} to {most}")
    return number


def _real(name: str, value: Any, kind: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: {type(value).__name__}; must be a float") from None
    if math.isfinite(number) and not math.isfinite(kind(number).value):
        raise ValueError(f"{name} = {number}: must fit 32 bits")
    return number


def _word(name: str, value: Any, words: tuple[str, ...]) -> int:
    if value not in words:
        accepted = ", ".join(repr(word) for word in words)
        raise ValueError(f"{name} = {value!r}: must be one of {accepted}")
    return words.index(value)


def _scalar(label: str, name: str, value: Any, kind: Any) -> Any:
    if name in WORDS:
        return _word(label, value, WORDS[name])
    number: Any
    if kind in (ctypes.c_float, ctypes.c_double):
        number = _real(label, value, kind)
    else:
        number = _integer(label, value, kind)
    if number == 0 and name in _NEVER_ZERO:
        raise ValueError(f"{label} = 0: must not be 0; None means {_NEVER_ZERO[name]}")
    return number


def _sections(name: str, value: Any) -> tuple[int, ...]:
    sections = tuple(_integer(f"{name}[{i}]", n, ctypes.c_int32) for i, n in enumerate(value))
    if len(sections) != 3:
        raise ValueError(f"{name}: {len(sections)} entries; must be 3 (time, height, width)")
    return sections


def _path(name: str, value: Any) -> bytes:
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name}: {type(value).__name__}; must be a path")
    return os.fsencode(value)


@functools.cache
def _kinds(struct: type[ctypes.Structure]) -> dict[str, Any]:
    return {name: kind for name, kind, *_ in struct._fields_}


def _is_default(name: str, value: Any) -> bool:
    if value is None:
        return True
    return type(value) in (bool, int, float) and not value and name not in _NEVER_ZERO


def _fill(struct: Any, values: Mapping[str, Any], views: dict[str, View], prefix: str) -> None:
    of: Any = type(struct)
    kinds = _kinds(of)
    for name, value in values.items():
        if _is_default(name, value):
            continue
        kind, label = kinds[name], prefix + name
        if kind is Tensor:
            views[label] = _arrays.view(label, value)
            setattr(struct, name, _arrays.as_tensor(label, views[label]))
        elif kind is RotaryAngles:
            if not hasattr(value, "rotary_dim"):
                raise TypeError(f"{label}: {type(value).__name__}; must be a tallow.Rotary")
            _fill(getattr(struct, name), vars(value), views, f"{label}.")
        elif name == "mrope_sections":
            getattr(struct, name)[:] = _sections(label, value)
        elif kind is ctypes.c_char_p:
            setattr(struct, name, _path(label, value))
        elif kind is ctypes.c_void_p:
            setattr(struct, name, operator.index(value))
        else:
            setattr(struct, name, _scalar(label, name, value, kind))


def _need_one_place(views: Mapping[str, View], first: str) -> None:
    device, index = views[first].device, views[first].device_index
    for name, v in views.items():
        if name == "rotary.inv_freq":
            if v.device != CPU:
                raise ValueError(f"{name} is in {v.place}: must be in host memory")
        elif v.device != device or v.device_index != index:
            place = views[first].place
            raise ValueError(f"{name} is in {v.place}: must be in {place}, as {first} is")


@dataclass
class Call:
    """A filled struct, with what must outlive the call."""

    params: Any
    views: dict[str, View]
    like: Any
    device: int
    device_index: int

    def run(self, function: str) -> None:
        _library.call(function, self.params)
        _arrays.finish(self.like, self.device, self.device_index)


def make_call(params: Any, values: Mapping[str, Any], first: str, written: set[str]) -> Call:
    """Fills `params` from the keywords that are not None. `first` names the array whose device and
    library the call runs with; the caller's arrays in `written` must be writable."""
    views: dict[str, View] = {}
    _fill(params, values, views, "")
    _need_one_place(views, first)
    for name in written & views.keys():
        if not views[name].writable:
            raise ValueError(f"{name} is read-only: must be writable, as the call writes it")
    device, like = views[first].device, values[first]
    params.device = device
    if device == CUDA:
        _library.find_nvrtc()
    if values.get("stream") is None:
        params.stream = _arrays.stream_of(like, device)
    if device == CUDA:
        owners = (v.owner for v in views.values() if v.device == CUDA)
        _arrays.join(owners, like, params.stream or 0)
    return Call(params, views, like, device, views[first].device_index)


def give_workspace(call: Call, workspace: Any, own_stream: bool) -> None:
    """Scratch memory: the caller's, or on CUDA as much as the call needs; the CPU takes its own."""
    if workspace is not None:
        v = _arrays.view("workspace", workspace)
        if v.dtype != "uint8" or len(v.shape) != 1 or v.strides != (1,):
            raise ValueError(
                f"workspace: {v.dtype} of shape {v.shape}; must be contiguous uint8 "
                "of one dimension"
            )
        _need_one_place(call.views | {"workspace": v}, "q")
    elif call.device == CPU or not (size := _library.workspace_size(call.params)):
        return
    elif own_stream:
        raise ValueError(f"workspace is absent: must have {size} bytes, as stream is given")
    else:
        v = _arrays.view("workspace", _arrays.empty(call.like, (size,), "uint8"))
    call.views["workspace"] = v
    call.params.workspace = v.pointer
    call.params.workspace_size = v.shape[0]
