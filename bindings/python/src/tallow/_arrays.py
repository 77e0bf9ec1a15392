"""Arrays of any library as tallow_tensor, without a copy. This is the only place that knows numpy,
torch, cupy and jax apart: numpy and torch are asked directly, the others speak DLPack."""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._structs import CPU, CUDA, DTYPE_SIZES, DTYPES, Tensor

_ACCEPTED = "float16, bfloat16, float32, int32 or int64"


class View(NamedTuple):
    """Where an array lies. Strides are in elements; `owner` keeps the memory alive."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int  # CPU or CUDA
    device_index: int
    writable: bool
    owner: Any

    @property
    def place(self) -> str:
        return "host memory" if self.device == CPU else f"CUDA device {self.device_index}"


@functools.cache
def _library_of_class(kind: type) -> str:
    if "torch" in sys.modules and issubclass(kind, sys.modules["torch"].Tensor):
        return "torch"  # subclasses of other packages included
    name = kind.__module__.partition(".")[0]
    return "jax" if name.startswith("jax") else name


def _library_of(array: Any) -> str:
    """numpy, torch, cupy, jax, or the top package of the array's class."""
    kind: Any = type(array)  # mypy takes no class for hashable
    return _library_of_class(kind)


# --------------------------------------------------------------------------------------------
# Views
# --------------------------------------------------------------------------------------------


def _numpy_view(name: str, array: np.ndarray[Any, Any]) -> View:
    size = array.dtype.itemsize
    if not array.dtype.isnative:
        raise TypeError(f"{name}: dtype {array.dtype.str}; must be of the machine's byte order")
    if any(stride % size for stride in array.strides):
        raise ValueError(f"{name}: strides {array.strides} bytes; must be multiples of {size}")
    strides = tuple(stride // size for stride in array.strides)
    return View(
        array.__array_interface__["data"][0],
        array.shape,
        strides,
        array.dtype.name,
        CPU,
        0,
        array.flags.writeable,
        array,
    )


@functools.cache
def _torch_dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _torch_view(name: str, tensor: Any) -> View:
    where = tensor.device
    device = {"cpu": CPU, "cuda": CUDA}.get(where.type)
    if device is None:
        raise ValueError(f"{name}: on {where}; must be on the CPU or a CUDA device")
    if tensor.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise ValueError(
            f"{name} requires grad: must not, as this call has no backward; "
            "tallow.flash_attn has one, torch.no_grad() needs none"
        )
    if tensor.is_neg():
        raise ValueError(f"{name} is a view that is negated when read: must be resolve_neg() of it")
    return View(
        tensor.data_ptr(),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        _torch_dtype(tensor.dtype),
        device,
        where.index or 0,
        True,
        tensor,
    )


class _DLTensor(ctypes.Structure):
    """The head of a DLManagedTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_DL_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_DL_DEVICES = {1: CPU, 2: CUDA, 3: CPU, 13: CUDA}  # plain, pinned and managed memory
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for i in range(len(shape) - 1, 0, -1):
        strides[i - 1] = strides[i] * max(shape[i], 1)
    return tuple(strides)


def _dlpack_view(name: str, array: Any) -> View:
    # Ready when asked: cupy's pending work is, as a rule, on the stream that the call will run on;
    # jax, which has no current stream, is waited for here; others are told to make the legacy
    # default stream wait (1), where their calls run. Other mixtures: join.
    if hasattr(array, "block_until_ready"):
        array.block_until_ready()
    pending = array.__dlpack_device__()[0] in (2, 13) and _library_of(array) != "jax"
    ready = -1 if _library_of(array) == "cupy" else 1
    capsule = array.__dlpack__(stream=ready) if pending else array.__dlpack__()
    t = _DLTensor.from_address(_pointer_of(capsule, b"dltensor"))
    if t.device_type not in _DL_DEVICES or t.lanes != 1:
        raise ValueError(
            f"{name}: DLPack device {t.device_type} with {t.lanes} lanes; "
            "must be scalars on the CPU or a CUDA device"
        )
    shape = tuple(t.shape[i] for i in range(t.ndim))
    strides = tuple(t.strides[i] for i in range(t.ndim)) if t.strides else _contiguous(shape)
    return View(
        (t.data or 0) + t.byte_offset,
        shape,
        strides,
        f"{_DL_CODES.get(t.code, 'code')}{t.bits}",
        _DL_DEVICES[t.device_type],
        t.device_id,
        _library_of(array) != "jax",
        (array, capsule),
    )


def view(name: str, array: Any) -> View:
    """The array called `name` in messages. TypeError: not an array. ValueError: out of reach."""
    library = _library_of(array)
    if isinstance(array, np.ndarray):
        return _numpy_view(name, array)
    if library == "torch":
        return _torch_view(name, array)
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _dlpack_view(name, array)
    raise TypeError(
        f"{name}: {type(array).__name__}; must be an array of numpy, torch, cupy, jax "
        "or another library that speaks DLPack"
    )


def as_tensor(name: str, v: View) -> Tensor:
    """The struct of a view. Shapes and dtypes that a field accepts are the library's business;
    here is only what the struct itself cannot say."""
    if v.dtype not in DTYPES:
        raise TypeError(f"{name}: dtype {v.dtype}; must be {_ACCEPTED}")
    if not 1 <= len(v.shape) <= 4:
        raise ValueError(f"{name}: {len(v.shape)} dimensions; must be 1 to 4")
    if not any(v.strides) and math.prod(v.shape) > 1:
        raise ValueError(
            f"{name}: one element seen as shape {v.shape} (all strides 0); "
            "must be an array with elements of its own: pass a copy"
        )
    if v.pointer % DTYPE_SIZES[v.dtype]:
        raise ValueError(f"{name}: address not a multiple of its dtype's size")
    t = Tensor(data=v.pointer, dtype=DTYPES[v.dtype])
    t.shape[: len(v.shape)] = v.shape
    t.strides[: len(v.strides)] = v.strides
    return t


# --------------------------------------------------------------------------------------------
# What a call needs from the library of its first array
# --------------------------------------------------------------------------------------------


def empty(like: Any, shape: Sequence[int], dtype: str | None = None) -> Any:
    """An array of like's library and device; dtype by name, or like's own."""
    library = _library_of(like)
    if library == "torch":
        torch = sys.modules["torch"]
        wanted = getattr(torch, dtype) if dtype else like.dtype
        return torch.empty(tuple(shape), dtype=wanted, device=like.device)
    if library == "cupy":
        with like.device:
            return sys.modules["cupy"].empty(tuple(shape), dtype or like.dtype)
    if library == "jax":
        return _jax_empty(like, shape, dtype)
    if isinstance(like, np.ndarray):
        return np.empty(tuple(shape), dtype or like.dtype)
    raise TypeError(f"out is absent: must be given, as arrays of {library} cannot be made here")


def _jax_empty(like: Any, shape: Sequence[int], dtype: str | None) -> Any:
    """jax arrays cannot be written once seen; this one nobody has seen yet."""
    import jax

    made = jax.device_put(
        jax.numpy.zeros(tuple(shape), dtype or like.dtype), next(iter(like.devices()))
    )
    return made.block_until_ready()


def stream_of(like: Any, device: int) -> int:
    """The current stream of like's library, as CUDA's handle; 0 on the CPU."""
    if device == CPU:
        return 0
    library = _library_of(like)
    if library == "torch":
        return int(sys.modules["torch"].cuda.current_stream(like.device).cuda_stream)
    if library == "cupy":
        with like.device:
            return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
    return 0


def join(owners: Iterable[Any], like: Any, stream: int) -> None:
    """Makes the call's stream wait for what is pending on arrays of other libraries than like's, as
    DLPack has it: a producer is told the consumer's stream, 1 for the legacy default one."""
    for owner in owners:
        array = owner[0] if isinstance(owner, tuple) else owner
        library = _library_of(array)
        if library not in (_library_of(like), "jax"):  # jax was waited for
            array.__dlpack__(stream=stream or 1)


def finish(like: Any, device: int, device_index: int) -> None:
    """jax reads results on streams of its own: wait for them."""
    if device == CPU or _library_of(like) != "jax":
        return
    driver, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
    for function, argument in (
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device_index)),
        ("cuCtxPushCurrent_v2", (context,)),
        ("cuCtxSynchronize", ()),
        ("cuCtxPopCurrent_v2", (ctypes.byref(context),)),
        ("cuDevicePrimaryCtxRelease_v2", (device_index,)),
    ):
        if error := getattr(driver, function)(*argument):
            raise RuntimeError(f"{function} on CUDA device {device_index}: error {error}")
