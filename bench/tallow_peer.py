"""Tallow as a plug-in of a benchmark that compares attention libraries in one PyTorch process: one
object per precision, with supports(case) and bind(case, q, k, v, o) -> a call without arguments.
Needs the Python package."""

import ctypes

import torch
from tallow import _library, _structs


def tensor(x):
    return _structs.Tensor(
        data=x.data_ptr(),
        shape=tuple(x.shape),
        strides=tuple(x.stride()),
        dtype=_structs.DTYPES[str(x.dtype).removeprefix("torch.")],
    )


class Tallow:
    def __init__(self, name, precision, accuracy_only=False):
        self.name, self.precision, self.accuracy_only = name, precision, accuracy_only

    def supports(self, case):
        return True

    def bind(self, case, q, k, v, o):
        params = _structs.AttentionParams(
            q=tensor(q),
            k=tensor(k),
            v=tensor(v),
            out=tensor(o),
            mask=_structs.WORDS["mask"].index("causal" if case.causal else "none"),
            precision=_structs.WORDS["precision"].index(self.precision),
            device=_structs.CUDA,
        )
        size = _library.workspace_size(params)
        workspace = torch.empty(max(size, 1), dtype=torch.uint8, device=q.device)
        params.workspace, params.workspace_size = (workspace.data_ptr(), size) if size else (None, 0)
        _library.call("attention_prepare", params)

        def run(keep=(q, k, v, workspace)):
            params.stream = torch.cuda.current_stream().cuda_stream
            _library.call("attention", params)
            return o

        self.kernel = _library.describe_call(params).get("kernel")
        return run

    def info(self, case):
        return self.kernel


def get_peers():
    return [
        Tallow("tallow", "default"),
        Tallow("tallow_fast", "fast"),
        Tallow("tallow_high", "high", accuracy_only=True),
    ]
