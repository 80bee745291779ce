"""Kernels as TIR in a file beside the library, from which objects are compiled later; devices do not need it.

Constants are in the library already, so the file only says where: (offset, type, shape).
"""

from __future__ import annotations

import base64
import json
import lzma
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm

from graphopt.backends.tvm.bare.calls import Array, Call, Calls, Slot
from graphopt.utils import json_data
from graphopt.utils.errors import ArtifactError, first_line

HELD = "kernels.json.xz"
LARGEST = 2**30  # bytes of JSON


def hold(calls: Calls, library: bytes) -> bytes:
    """The file's content."""
    content = {
        "tvm": tvm.__version__,
        "kernels": tvm.ir.save_json(calls.kernels),
        "calls": calls.calls,
        "buffers": calls.buffers,
        "constants": [_described(constant, library) for constant in calls.constants],
        "copies": calls.copies,
    }
    return lzma.compress(json.dumps(content).encode())


def held(content: bytes, library: bytes) -> Calls:
    """What `hold` was given.

    Raises:
        ArtifactError: another release of TVM wrote it, or it is damaged.
    """
    found = _described_in(content)
    if found["tvm"] != tvm.__version__:
        raise ArtifactError(
            f"the kernels were written by TVM {found['tvm']}, and this is {tvm.__version__}, which may read them differently; "
            "lower the model again, or install that release"
        )
    return Calls(
        tvm.ir.load_json(found["kernels"]),
        tuple(Call(name, _places(reads), _places(writes)) for name, reads, writes in found["calls"]),
        tuple(found["buffers"]),
        tuple(_constant(described, library) for described in found["constants"]),
        tuple((number, Slot(*place)) for number, place in found["copies"]),
    )


def _described_in(content: bytes) -> Any:
    """The JSON text that is compressed in a file, which is not let grow beyond `LARGEST`."""
    try:
        unpacked = lzma.LZMADecompressor(memlimit=2**30).decompress(content, max_length=LARGEST + 1)
        return json_data.parse(unpacked, limit=LARGEST)
    except (ValueError, EOFError, lzma.LZMAError) as error:
        raise ArtifactError(f"the kernels are damaged ({first_line(error)}); lower the model again") from error


def _described(constant: Array, library: bytes) -> dict[str, Any]:
    content = constant.tobytes()
    offset = library.find(content)
    where = {"offset": offset} if offset >= 0 else {"content": base64.b64encode(content).decode()}
    return {**where, "dtype": str(constant.dtype), "shape": constant.shape}


def _constant(described: Mapping[str, Any], library: bytes) -> Array:
    dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
    if "offset" in described:
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(library, dtype, count, described["offset"]).reshape(shape)
    return np.frombuffer(base64.b64decode(described["content"]), dtype).reshape(shape)


def _places(described: Any) -> tuple[Slot, ...]:
    return tuple(Slot(*place) for place in described)
