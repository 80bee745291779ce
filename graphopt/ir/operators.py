"""The operators that a graph from a file may call: arithmetic on tensors and sizes, and nothing that reaches beyond.

A name in a file is looked up, never walked or imported. Operators that a package registers are called only where the
caller allowed its namespace: `allow_operators("torchvision")`, after importing the package. No file can do that.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from graphopt.utils.errors import InputError

# The only plain functions a graph may call: arithmetic on sizes, and taking one of several results.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{n}": getattr(operator, n) for n in (
        "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "abs",
        "pos", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_",
    )},
    **{f"math.{n}": getattr(math, n) for n in ("ceil", "floor", "trunc", "sqrt")},
    **{f"torch.{n}": getattr(torch, n) for n in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sum")
       if hasattr(torch, n)},
}  # fmt: skip
LARGEST_EXPONENT = 64
# Namespaces that are always allowed, with the modules that register them where torch alone does not.
DEFINED_IN: dict[str, tuple[str, ...]] = {
    "aten": (),
    "quantized_decomposed": ("torch.ao.quantization.fx._decomposed",),
    "graphopt": (
        "graphopt.formats",
        "graphopt.formats.blocks",
        "graphopt.ir.choices",
        "graphopt.lowering.integers.legalize",
        "graphopt.lowering.to_signs",
    ),
}
# Namespaces of torch's own that talk to processes or devices, or call functions handed to them.
NEVER = {
    "c10d",
    "_c10d_functional",
    "debugprims",
    "higher_order",
    "inductor",
    "prim",
    "prims",
    "profiler",
    "rpc",
    "triton",
}
# Of aten: what reads the disk, replaces a tensor's memory, or trusts packed bytes and indices from its caller.
REFUSED = re.compile(
    r"from_file|set_?|set_data|record_stream|pin_memory|segment_reduce|.*sparse.*|.*_backward(_.*)?"
    r"|(cudnn|fbgemm|miopen|mkldnn|mps|quantized|to_mkldnn)(_.*)?"
)
# Operators that begin with an underscore are torch's own internals, which trust their arguments. These turn up in exported
# programs, decomposed ones included, and check theirs.
INTERNAL = {
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_assert_async", "_assert_scalar", "_assert_tensor_metadata",
    "_batch_norm_no_update", "_batch_norm_with_update_functional", "_cdist_forward", "_conj", "_conj_copy", "_conj_physical",
    "_convolution", "_embedding_bag", "_euclidean_dist", "_fft_c2c", "_fft_c2r", "_fft_r2c", "_functional_assert_async",
    "_functional_assert_scalar", "_fused_rms_norm", "_is_all_true", "_is_any_true", "_linalg_det", "_linalg_eigh",
    "_linalg_slogdet", "_linalg_solve_ex", "_linalg_svd", "_local_scalar_dense", "_log_softmax", "_logcumsumexp",
    "_native_batch_norm_legit", "_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training", "_neg_view",
    "_pdist_forward", "_prelu_kernel", "_reshape_copy", "_safe_softmax", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention_for_cpu", "_shape_as_tensor", "_softmax", "_stack", "_to_copy", "_trilinear", "_unique2",
    "_unsafe_index", "_unsafe_index_put", "_unsafe_masked_index", "_unsafe_view", "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
    "_weight_norm", "_weight_norm_interface",
    "__and__", "__iand__", "__ilshift__", "__ior__", "__irshift__", "__ixor__", "__lshift__", "__or__", "__rshift__", "__xor__",
}  # fmt: skip
# What arguments and results may be; others are storages, streams, classes of TorchScript.
PLAIN = {"Tensor", "int", "float", "bool", "number", "str", "complex", "Device", "Generator"}
_WORD = re.compile(r"(?!Optional\b|List\b)\b\w+")
_NAME = re.compile(r"([A-Za-z]\w*)::(\w+)\.([A-Za-z]\w*)", re.ASCII)

_allowed: set[str] = set()


def allow_operators(namespace: str) -> None:
    """Let graphs from files call the operators that a package has registered under this namespace, in this process.

    Allow what you would run: such an operator is code of the package, called with arguments from the file.

        import torchvision
        graphopt.allow_operators("torchvision")
        graph = Graph.load("detector.pt2")

    Raises:
        InputError: it is no name of a namespace, or one of torch's own.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", namespace, re.ASCII):
        raise InputError(f"{namespace!r} is no namespace of operators; give a name such as 'torchvision'")
    if namespace in NEVER:
        raise InputError(f"operators of {namespace!r} reach beyond tensors; files cannot call them")
    _allowed.add(namespace)


def find(name: str, *, in_place: bool = False) -> Any:
    """The operator that a file calls `aten::relu.default` or `operator.add`.

    Args:
        in_place: also those that write into their arguments.

    Raises:
        InputError: it is not registered in this process, or a file may not call it; says which.
    """
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise InputError(f"{name[:100]!r} is no operator that a file may call")
    namespace, packet, overload = parts.groups()
    if namespace not in DEFINED_IN and namespace not in _allowed:
        raise InputError(
            f"the graph calls {name}, and operators of {namespace!r} are code of another package; import the package that "
            f"defines it first and allow it: graphopt.allow_operators({namespace!r})"
        )
    found = _registered(namespace, packet, overload)
    if found is None:
        raise InputError(
            f"the graph calls {name}, which is not registered here; import the package that defines it first"
        )
    if (wrong := _reaches(found, packet)) is not None or (found._schema.is_mutable and not in_place):
        raise InputError(f"the graph calls {name}, which {wrong or 'writes into its arguments'}; no file may do that")
    return found


def check_arithmetic(target: Any, args: Sequence[Any]) -> None:
    """Refuse plain functions of arguments that would fill the memory: texts or lists times a number, powers of whole numbers.

    Raises:
        InputError: names the function and its argument.
    """
    if target not in _ARITHMETIC:
        return
    for value in args:
        if isinstance(value, (str, list, tuple)) or (type(value) is int and abs(value) >= 2**64):
            raise InputError(f"{target.__name__} of {str(value)[:100]}; graphs compute with sizes of tensors only")
    if target is operator.pow and type(args[-1]) is int and abs(args[-1]) > LARGEST_EXPONENT:
        raise InputError(f"a power of {args[-1]}, more than {LARGEST_EXPONENT}")


_ARITHMETIC = set(FUNCTIONS.values()) - {operator.getitem, getattr(torch, "sym_sum", None)}


def _registered(namespace: str, packet: str, overload: str) -> Any:
    for module in DEFINED_IN.get(namespace, ()):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    full = f"{namespace}::{packet}" if overload == "default" else f"{namespace}::{packet}.{overload}"
    if not torch._C._dispatch_has_kernel(full):
        return None  # among them what only TorchScript's interpreter has
    found = getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def _reaches(found: Any, packet: str) -> str | None:
    """How an operator reaches beyond values of tensors; None where it does not."""
    schema = found._schema
    if schema.name.startswith("aten::") and packet.startswith("_") and packet not in INTERNAL:
        return "is one of torch's internals"
    if schema.name.startswith("aten::") and REFUSED.fullmatch(packet):
        return "reaches beyond its tensors"
    odd = [a.type for a in (*schema.arguments, *schema.returns) if not set(_WORD.findall(str(a.type))) <= PLAIN]
    return f"takes or returns a {odd[0]}" if odd else None
