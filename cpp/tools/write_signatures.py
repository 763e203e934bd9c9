"""Writes the sources that follow word for word from the signatures of the methods.

The signatures are those of cpp/src/ops/signatures.h, printed by a program that is compiled for it;
tests/test_signatures.py compares the files with those of the module. A file says in its first line
that it is written.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CPP = Path(__file__).parents[1]
WRITTEN = "// Written by `python3 dev.py signatures` from cpp/src/ops/signatures.h."

Signature = dict[str, Any]
C_TYPES = {"float": "double ", "int": "int64_t "}


def printed() -> dict[str, Signature]:
    """The signatures as the sources have them, by the compiler that CXX names."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "print_signatures")
        flags = ["-std=gnu++20", f"-I{CPP / 'include'}", f"-I{CPP / 'src'}"]
        compiler = os.environ.get("CXX", "c++").split()
        source = str(Path(__file__).parent / "print_signatures.cc")
        subprocess.run([*compiler, *flags, source, "-o", program], check=True)
        text = subprocess.run([program], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(text)


def own_of(signature: Signature) -> list[str]:
    """The arrays of a method's own."""
    return [name for name, _ in signature["own"]]


def affine(signature: Signature, missing: str) -> list[str]:
    """weight and bias, or what stands for the one that a method does not have."""
    return [name if name in signature["affine"] else missing for name in ("weight", "bias")]


def listed(items: list[str]) -> str:
    """Parameters, one to a line."""
    return "(\n    " + ",\n    ".join(items) + ")"


# ---- C++: the functions of ops.h


def functions(signature: Signature) -> str:
    """The definitions of a method's functions."""
    name, own, groups = signature["function"], own_of(signature), signature["has_groups"]
    arrays = [f"const ConstTensor& {a}" for a in own] + ["Index num_groups"] * groups
    weight = ["const ConstTensor& weight"] * ("weight" in signature["affine"])
    ends = [f"const Signature<{signature['struct']}>::Options& options"]
    context = "const Context& context"
    forward = ["const ConstTensor& x", *arrays, *weight, "const ConstTensor& bias"]
    forward += ["const Tensor& y", *ends, "const StatsOut& stats", context]
    backward = ["const ConstTensor& dy", "const ConstTensor& x", *arrays, *weight]
    backward += ["const Gradients& gradients"]
    backward += [f"const Tensor& {g}" for g in signature["gradients"] if g[1:] in own]
    backward += [*ends, "const SavedStats& stats", context]

    inner = [f"{{{', '.join('&' + a for a in own)}}}", *["num_groups"] * groups]
    call_weight, call_bias = affine(signature, "kAbsent")
    call = ", ".join(["x", call_weight, call_bias, *inner])
    back = ", ".join(["x", call_weight, "kAbsent", *inner])
    down = ", ".join("&d" + a for a in own)
    method = signature["struct"]
    return (
        f"void {name}{listed(forward)} {{\n"
        f"  forward<{method}>({{{call}}}, y, options, stats, context);\n}}\n"
        f"void {name}_backward{listed(backward)} {{\n"
        f"  backward<{method}>(dy, {{{back}}}, gradients, options, stats, context, {{{down}}});\n"
        "}\n"
    )


# ---- C


def c_head(signature: Signature) -> str:
    """The head of a method's C function: x, what else it must have, weight and bias, results."""
    tensor = "const normcore_const_tensor* "
    options = signature["options"]
    parameters = [
        tensor + "x",
        *[tensor + name for name in own_of(signature)],
        *["int64_t num_groups"] * signature["has_groups"],
        *[C_TYPES[options[name]["type"]] + name for name in signature["inference"]],
        *[tensor + name for name in signature["affine"]],
        "const normcore_tensor* y",
        "const normcore_channel_options* options",
        "const normcore_context* context",
    ]
    return f"normcore_status normcore_{signature['function']}{listed(parameters)}"


def c_remarks(signature: Signature) -> str:
    """What a user must know of a method's running statistics."""
    remarks = [f"{name} counts where statistics are those of x." for name in signature["inference"]]
    if not signature["buffers"]:
        remarks.append("Takes no running statistics.")
    elif signature["always_given"]:
        remarks.append("The running statistics must be given.")
    elif len(signature["buffers"]) == 1:
        remarks.append("Has no running_spread.")
    return "".join(f"// {remark}\n" for remark in remarks)


def c_declaration(signature: Signature) -> str:
    """The declaration of a method's C function."""
    return f"{c_remarks(signature)}NORMCORE_API {c_head(signature)};\n"


def c_definition(signature: Signature) -> str:
    """The definition of a method's C function."""
    own = "{" + ", ".join(own_of(signature)) + "}"
    arguments = ["x", *affine(signature, "nullptr"), own]
    arguments += ["num_groups"] * signature["has_groups"]
    options = ", ".join(f".{name} = {name}" for name in signature["inference"])
    call = f"channel_norm<{signature['struct']}>({{{', '.join(arguments)}}}"
    return f"{c_head(signature)} {{\n  return {call}, y, options, context, {{{options}}});\n}}\n"


# ---- files


def files(signatures: dict[str, Signature]) -> dict[Path, str]:
    """Each written file with what it should hold."""
    channels = [s for s in signatures.values() if s["family"] == "channels"]

    def written(what: str, function: Callable[[Signature], str]) -> str:
        methods = "".join(map(function, channels))
        return f"{WRITTEN}\n// {what}\n// clang-format off\n\n{methods}"

    return {
        CPP / "src/ops/channels.inc": written("A part of channels.cc.", functions),
        CPP / "include/normcore/c_channels.h": written("A part of c_api.h.", c_declaration),
        CPP / "src/ops/c_channels.inc": written("A part of c_api.cc.", c_definition),
    }


if __name__ == "__main__":
    for path, text in files(printed()).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(CPP.parent)}")
