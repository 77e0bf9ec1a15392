"""The ctypes structs against what a C compiler makes of tallow.h."""

import inspect
import json
import pathlib
import re
import shutil
import subprocess

import pytest

import tallow
from tallow import _attention
from tallow._structs import DTYPES, STRUCTS, WORDS

HEADER = pathlib.Path(__file__).parents[3] / "include" / "tallow.h"


def compiled(tmp_path, body):
    """What a C program with this body of main prints, as JSON."""
    source, program = tmp_path / "print.c", tmp_path / "print"
    source.write_text(
        f'#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{\n{body}\nreturn 0;\n}}\n'
    )
    subprocess.run(["cc", "-o", program, source], check=True)
    return json.loads(subprocess.run([program], check=True, capture_output=True).stdout)


needs_cc = pytest.mark.skipif(
    not shutil.which("cc") or not HEADER.exists(), reason="needs cc and the repository's header"
)


@needs_cc
@pytest.mark.parametrize("name", STRUCTS)
def test_layout(tmp_path, name):
    struct = STRUCTS[name]
    rows = [
        f'printf("\\"{f}\\": [%zu, %zu], ", offsetof({name}, {f}), sizeof((({name} *)0)->{f}));'
        for f, *_ in struct._fields_
    ]
    body = 'printf("{");\n' + "\n".join(rows) + f'\nprintf("\\"end\\": %zu}}", sizeof({name}));'
    found = compiled(tmp_path, body)
    import ctypes

    assert found.pop("end") == ctypes.sizeof(struct)
    assert found == {
        f: [getattr(struct, f).offset, getattr(struct, f).size] for f, *_ in struct._fields_
    }


@needs_cc
@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_is_there(name):
    """The header's own list of fields, so that none is missing."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", text, re.S).group(1)
    names = [
        re.sub(r"\[.*", "", word.split()[-1].lstrip("*"))
        for line in body.split(";")
        if line.strip()
        for word in line.split(",")
    ]
    assert names == [f for f, *_ in STRUCTS[name]._fields_]


@needs_cc
def test_enums(tmp_path):
    prefixes = {"mask": "MASK", "precision": "PRECISION", "pairing": "PAIRING", "mrope": "MROPE"}
    wanted = {
        f"{prefixes[kind]}_{word}".upper(): value
        for kind, words in WORDS.items()
        for value, word in enumerate(words)
    }
    short = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "int32": "I32", "int64": "I64"}
    wanted |= {short[name]: value for name, value in DTYPES.items()}
    wanted |= {"DEVICE_CPU": 0, "DEVICE_CUDA": 1, "INVALID_ARGUMENT": 1}
    rows = "".join(f'printf("\\"{n}\\": %d, ", (int)TALLOW_{n});' for n in wanted)
    assert compiled(tmp_path, f'printf("{{"); {rows} printf("\\"x\\": 0}}");') == wanted | {"x": 0}


def test_keywords_are_the_fields():
    """Every field has its keyword; the only other names are those that Python says differently."""
    fields = {f for f, *_ in STRUCTS["tallow_attention_params"]._fields_}
    keywords = set(inspect.signature(tallow.attention).parameters)
    assert fields - keywords == {"mask", "window_left", "window_right", "device", "workspace_size"}
    assert keywords - fields == {"causal", "window", "return_lse"}
    for function, struct in (
        (tallow.rotary, "tallow_rotary_params"),
        (tallow.merge, "tallow_merge_params"),
    ):
        fields = {f for f, *_ in STRUCTS[struct]._fields_}
        keywords = set(inspect.signature(function).parameters)
        assert fields - keywords == {"device"} and keywords - fields <= {"return_lse"}
    assert [f for f, *_ in STRUCTS["tallow_rotary_angles"]._fields_] == list(
        _attention.Rotary.__dataclass_fields__
    )


def test_version():
    text = re.search(r"VERSION_MAJOR (\d+).*?MINOR (\d+).*?PATCH (\d+)", HEADER.read_text(), re.S)
    assert tallow.version() == tuple(map(int, text.groups()))
    assert tallow.system()["version"] == tallow.__version__
