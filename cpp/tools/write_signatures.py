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
STUBS_BEGIN = "# Written from here on by `python3 dev.py signatures`.\n"
STUBS_END = "\n# Up to here.\n"
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


def listed(items: list[str], end: str = "") -> str:
    """Parameters, one to a line; Python's formatter wants a comma behind the last."""
    return "(\n    " + ",\n    ".join(items) + (f"{end}\n)" if end else ")")


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


# ---- the stub of the Python module


def taken(signature: Signature, backward: bool) -> dict[str, str]:
    """What a function of the module takes, by position, with the types."""
    weights = signature["family"] == "weights"
    own = dict(signature["own"])
    buffers = dict(signature["buffers"])
    arguments = {"dw" if weights else "dy": "A"} if backward else {}
    arguments["v" if weights else "x"] = "A"
    for a in signature["arguments"]:
        if backward and a in signature["forward_only"]:
            continue
        if a == "residual":
            arguments["dh" if backward else "residual"] = "A | None"
        elif a in own:
            arguments[a] = "Floats | float" if own[a] == "kept" else "Floats"
        elif a in signature["affine"] or a == "mask":
            arguments[a] = "Floats | None"
        elif a in buffers:
            arguments[a] = "SupportsDLPack | None"
        elif a == "num_groups":
            arguments[a] = "int"
        elif a == "axis":
            arguments[a] = "int | None" if weights else "int | Sequence[int] | None"
        else:
            arguments[a] = signature["options"][a]["type"]
    if backward:
        saved = [s for s in ("pooled", "given") if s in signature["statistics"]]
        arguments |= dict.fromkeys(saved, "SupportsDLPack | None")
    arguments["out"] = "A | None"
    if not backward and signature["statistics"]:
        arguments["return_stats"] = "bool"
    return arguments


def returned(signature: Signature, backward: bool) -> list[str]:
    """The types of what it may return."""
    if backward:
        affine = {"d" + n for n in signature["affine"]}
        each = ["A | None" if g in affine else "A" for g in signature["gradients"]]
        return [f"tuple[{', '.join(each)}]" if len(each) > 1 else "A"]
    if not signature["statistics"]:
        return ["A"]
    types = {"mean": "A", "rstd": "A", "pooled": "Array", "given": "Array | None"}
    each = [t if n in signature["statistics"] else "None" for n, t in types.items()]
    stats = f"tuple[{', '.join(each)}]"
    outputs = ["A", "A, A"] if signature["has_residual"] else ["A"]
    without = ["A", *(f"tuple[{o}]" for o in outputs[1:])]
    return without + [f"tuple[{o}, {stats}]" for o in outputs]


def stub(signature: Signature, backward: bool) -> str:
    """The definition of one function."""
    arguments = [f"{name}: {type_}" for name, type_ in taken(signature, backward).items()]
    name = signature["function"] + "_backward" * backward
    types = returned(signature, backward)
    line = " | ".join(types)
    if len(line) > 88:  # as the formatter of the sources has it
        line = "(\n    " + (line if len(line) < 97 else "\n    | ".join(types)) + "\n)"
    return f"def {name}{listed([*arguments, '/'], ',')} -> {line}: ...\n"


def with_stubs(text: str, signatures: list[Signature]) -> str:
    """The stub of the module with the functions of the methods in their place."""
    stubs = "".join(stub(s, backward) for s in signatures for backward in (False, True))
    before, _, rest = text.partition(STUBS_BEGIN)
    after = rest.partition(STUBS_END)[2]
    return before + STUBS_BEGIN + stubs + STUBS_END + after


# ---- files


def files(signatures: dict[str, Signature]) -> dict[Path, str]:
    """Each written file with what it should hold."""
    # Several methods may stand behind one function.
    each = {s["function"]: s for s in signatures.values()}.values()
    channels = [s for s in each if s["family"] == "channels"]
    core = CPP.parent / "python/normcore/_core.pyi"

    def written(what: str, function: Callable[[Signature], str]) -> str:
        methods = "".join(map(function, channels))
        return f"{WRITTEN}\n// {what}\n// clang-format off\n\n{methods}"

    return {
        CPP / "src/ops/channels.inc": written("A part of channels.cc.", functions),
        CPP / "include/normcore/c_channels.h": written("A part of c_api.h.", c_declaration),
        CPP / "src/ops/c_channels.inc": written("A part of c_api.cc.", c_definition),
        core: with_stubs(core.read_text(encoding="utf-8"), list(each)),
    }


if __name__ == "__main__":
    for path, text in files(printed()).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(CPP.parent)}")
