"""Writes the sources that follow word for word from the signatures of the methods.

The signatures are those of the installed module (``ops/signatures.h``, by `_core.signatures`). The
files say in their first line that they are written; tests/test_signatures.py compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from normcore import _core

CPP = Path(__file__).parent
WRITTEN = "// Written by `python3 dev.py signatures` from cpp/src/ops/signatures.h."

TENSOR = "const normcore_const_tensor* "
C_TYPES = {"float": "double ", "int": "int64_t "}


def channel_methods() -> list[dict[str, Any]]:
    """The signatures of the channel family."""
    return [s for s in _core.signatures().values() if s["family"] == "channels"]


def c_head(signature: dict[str, Any]) -> str:
    """The head of a method's C function: x, what else it must have, weight and bias, results."""
    options = signature["options"]
    parameters = [
        TENSOR + "x",
        *[TENSOR + name for name, _ in signature["own"]],
        *["int64_t num_groups"] * signature["has_groups"],
        *[C_TYPES[options[name]["type"]] + name for name in signature["inference"]],
        *[TENSOR + name for name in signature["affine"]],
        "const normcore_tensor* y",
        "const normcore_channel_options* options",
        "const normcore_context* context",
    ]
    listed = ",\n    ".join(parameters)
    return f"normcore_status normcore_{signature['function']}(\n    {listed})"


def c_remarks(signature: dict[str, Any]) -> str:
    """What a user must know of a method's running statistics."""
    remarks = [f"{name} counts where statistics are those of x." for name in signature["inference"]]
    if not signature["buffers"]:
        remarks.append("Takes no running statistics.")
    elif signature["always_given"]:
        remarks.append("The running statistics must be given.")
    elif len(signature["buffers"]) == 1:
        remarks.append("Has no running_spread.")
    return "".join(f"// {remark}\n" for remark in remarks)


def c_declaration(signature: dict[str, Any]) -> str:
    """The declaration of a method's C function."""
    return f"{c_remarks(signature)}NORMCORE_API {c_head(signature)};\n"


def c_definition(signature: dict[str, Any]) -> str:
    """The definition of a method's C function."""
    affine = [n if n in signature["affine"] else "nullptr" for n in ("weight", "bias")]
    own = ", ".join(name for name, _ in signature["own"])
    given = ["x", *affine, f"{{{own}}}", *["num_groups"] * signature["has_groups"]]
    options = ", ".join(f".{name} = {name}" for name in signature["inference"])
    call = f"channel_norm<{signature['struct']}>({{{', '.join(given)}}}"
    return f"{c_head(signature)} {{\n  return {call}, y, options, context, {{{options}}});\n}}\n"


def written(what: str, function: Callable[[dict[str, Any]], str]) -> str:
    """A written file: what it is, and what a function makes of each channel method."""
    methods = "".join(map(function, channel_methods()))
    return f"{WRITTEN}\n// {what}\n// clang-format off\n\n{methods}"


def files() -> dict[Path, str]:
    """Each written file with what it should hold."""
    return {
        CPP / "include/normcore/c_channels.h": written("A part of c_api.h.", c_declaration),
        CPP / "src/ops/c_channels.inc": written("A part of c_api.cc.", c_definition),
    }


if __name__ == "__main__":
    for path, text in files().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(CPP.parent)}")
