"""What an artifact is called with: checked against its manifest, as arrays in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.artifacts.manifest import Manifest, TensorSpec
from graphopt.ir import sizes, structure
from graphopt.utils.errors import InputError
from graphopt.utils.printing import dtype_name

Array = np.ndarray[Any, Any]


def arrays(manifest: Manifest, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Array]:
    """The inputs of a call, flat and checked.

    Raises:
        InputError: names the input that does not fit, what was expected and what came.
    """
    given = _flat(manifest, args, kwargs)
    found = [_checked(spec, value) for spec, value in zip(manifest.inputs, given, strict=True)]
    free(manifest, found)
    return found


def free(manifest: Manifest, given: Sequence[Array]) -> list[int]:
    """The free sizes of a call."""
    return sizes.read(manifest.free_sizes, [s.name for s in manifest.inputs], [a.shape for a in given])


def least(manifest: Manifest) -> dict[str, Tensor]:
    """Zeros that fit, by name, of the least sizes."""
    shapes = [[1 if size is None else size for size in spec.shape] for spec in manifest.inputs]
    for free_size in manifest.free_sizes:
        for place in free_size.places:
            shapes[place.input][place.dimension] = place.length(free_size.min)
    specs = zip(manifest.inputs, shapes, strict=True)
    return {spec.name: torch.zeros(shape, dtype=getattr(torch, spec.dtype)) for spec, shape in specs}


def tensor(array: Array) -> Tensor:
    """An output as torch has it."""
    return torch.from_numpy(np.asarray(array, order="C")) if array.flags.writeable else torch.tensor(array)


def _flat(manifest: Manifest, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    specs, nesting = manifest.inputs, manifest.input_structure
    args, kwargs = structure.unpacked(args, kwargs, structure.takes_dictionary(nesting))
    try:
        return structure.leaves(nesting, (args, kwargs), "the arguments")
    except InputError as error:
        given = [*args, *kwargs.values()]
        if all(isinstance(v, (Tensor, np.ndarray)) for v in given):
            if not kwargs and len(args) == len(specs):
                return list(args)
            if not args and set(kwargs) == {s.name for s in specs}:
                return [kwargs[s.name] for s in specs]
        raise InputError(f"the model takes {', '.join(map(str, specs))}; {error}") from None


def _checked(spec: TensorSpec, value: Any) -> Array:
    """`value` as a contiguous array, after checking that it is what `spec` says."""
    if isinstance(value, Tensor):
        dtype = dtype_name(value.dtype)
    elif isinstance(value, np.ndarray):
        dtype = str(value.dtype)
    else:
        raise InputError(f"input {spec.name!r} must be a tensor or numpy array, got {type(value).__name__}")
    if not sizes.fits(value.shape, spec.shape) or dtype != spec.dtype:
        came = f"{dtype}[{', '.join(map(str, value.shape))}]"
        raise InputError(f"input {spec.name!r} must be {str(spec).partition(': ')[2]}, got {came}")
    return np.asarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value, order="C")
