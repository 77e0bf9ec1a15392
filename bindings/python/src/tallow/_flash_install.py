"""flash_attn as modules and as an installed distribution, for tallow.flash_attn.install()."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import sys
import types
from collections.abc import Iterable
from typing import Any

from . import _flash_padding, _flash_rotary

_INTERFACE = (
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
)
_PADDING = ("index_first_axis", "index_put_first_axis", "pad_input", "unpad_input")
_ROTARY = ("apply_rotary_emb", "apply_rotary_emb_func")


def _get_block_size_n(device: Any, head_dim: int, is_dropout: bool, is_causal: bool) -> int:
    """Keys that share one maximum in the weights of return_attn_probs: here all of a row."""
    return 1 << 30


def _module(name: str, package: bool, contents: dict[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name, "Computed by Tallow; see tallow.flash_attn.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=package)
    if package:
        module.__path__ = []
    module.__dict__.update(contents)
    return module


def _modules(source: types.ModuleType) -> dict[str, types.ModuleType]:
    functions = {name: getattr(source, name) for name in _INTERFACE}
    padding = {name: getattr(_flash_padding, name) for name in _PADDING}
    rotary = {name: getattr(_flash_rotary, name) for name in _ROTARY}
    made = {
        "flash_attn": _module("flash_attn", True, functions | {"__version__": source.__version__}),
        "flash_attn.flash_attn_interface": _module(
            "flash_attn.flash_attn_interface",
            False,
            functions | {"_get_block_size_n": _get_block_size_n},
        ),
        "flash_attn.bert_padding": _module("flash_attn.bert_padding", False, padding),
        "flash_attn.layers": _module("flash_attn.layers", True, {}),
        "flash_attn.layers.rotary": _module("flash_attn.layers.rotary", False, rotary),
    }
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    return made


class _Distribution(importlib.metadata.Distribution):
    """What libraries ask before they import flash_attn: its version."""

    def __init__(self, version: str) -> None:
        self.files_by_name = {
            "METADATA": f"Metadata-Version: 2.1\nName: flash-attn\nVersion: {version}\n",
            "top_level.txt": "flash_attn\n",
        }

    def read_text(self, filename: str) -> str | None:
        return self.files_by_name.get(filename)

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(path)


class _Finder(importlib.metadata.DistributionFinder):
    def __init__(self, version: str) -> None:
        self.distribution = _Distribution(version)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        return None

    def find_distributions(self, context: Any = None) -> Iterable[importlib.metadata.Distribution]:
        name = getattr(context, "name", None)
        if name is None or name.lower().replace("-", "_") == "flash_attn":
            yield self.distribution


def install(source: types.ModuleType) -> None:
    present = sys.modules.get("flash_attn")
    if present is not None:
        if getattr(present, "flash_attn_func", None) is source.flash_attn_func:
            return
        raise RuntimeError(
            f"flash_attn is already imported, from {present.__file__}: call "
            "tallow.flash_attn.install() before that"
        )
    sys.modules.update(_modules(source))
    sys.meta_path.insert(0, _Finder(source.__version__))
