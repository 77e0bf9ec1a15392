"""Tallow: exact attention for arrays of numpy, torch, cupy and jax, on CPUs and NVIDIA GPUs."""

from ._attention import Rotary, attention, compile, describe, kv_cache_step, merge, prepare, rotary
from ._library import Error, system, version

__all__ = [
    "Error",
    "Rotary",
    "attention",
    "compile",
    "describe",
    "kv_cache_step",
    "merge",
    "prepare",
    "rotary",
    "system",
    "version",
]

__version__ = ".".join(map(str, version()))
