"""A compiler for manylinux_2_28, where glibc is 2.28 and libstdc++ that of GCC 8.

`python manylinux.py MACHINE FOLDER` writes it into the folder, and prints what to link with; the
session `wheels` calls it. Clang and glibc are those of ziglang; the C++ library is that of the
GCC that is installed, since programs that GCC compiles pass its strings and catch its exceptions.
All that GCC 8 has comes from the shared libstdc++, so that a process has one state of exceptions;
the little that is newer is linked from the static one, and hidden.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# The newest versions of symbols that manylinux_2_28 allows.
LIMITS = {"GLIBCXX_3.4": 24, "CXXABI_1.3": 11}
# Of readelf's types of symbols: the assembler's, and where they stand.
TYPES = {
    "FUNC": ("function", ".text"),
    "OBJECT": ("object", ".data"),
    "TLS": ("tls_object", '.section .tbss,"awT",%nobits'),
}
# What our sources want of a newer libstdc++ than GCC 8's, and where it lies in the static one.
MEMBERS = ("condition_variable.o", "eh_ptr.o", "floating_to_chars.o")
# And what these, and headers, want besides. That there is one thread is never said: counts are
# atomic.
SINGLE_THREADED = "extern char __libc_single_threaded;\n"
NEWER = """\
#include <sys/single_threaded.h>

#include <exception>
#include <new>

char __libc_single_threaded = 0;
namespace std {
[[noreturn]] void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
namespace __cxxabiv1 {
[[noreturn]] void __terminate(void (*)()) noexcept { std::terminate(); }
}  // namespace __cxxabiv1
"""
# zig has names of its own for the levels of x86-64.
WRAPPER = """\
#!/bin/sh
for argument do
  shift
  case $argument in -march=x86-64-*) argument=-march=x86_64_${{argument##*-}} ;; esac
  set -- "$@" "$argument"
done
exec {command} "$@"
"""


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def write(file: Path, text: str) -> Path:
    """Write the file unless it is the same: ccache goes by the time of a compiler's change."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    return file


def write_library(compiler: Path, library: str, file: Path) -> None:
    """A library to link with in the place of `library`: what LIMITS allows of it, without code."""
    versions: dict[str, list[str]] = {}
    lines = []
    # Num: Value Size Type Bind Vis Ndx Name@@Version
    for line in output("readelf", "--dyn-syms", "--wide", library).splitlines():
        symbol = re.search(r" (FUNC|OBJECT|TLS) .* (\S+)@@(([A-Z]+_\d+\.\d+)(?:\.(\d+))?)$", line)
        if symbol is None or int(symbol[5] or 0) > LIMITS.get(symbol[4], -1):
            continue
        kind, section = TYPES[symbol[1]]
        name = symbol[2]
        versions.setdefault(symbol[3], []).append(name)
        lines += [section, f".globl {name}", f".type {name}, %{kind}", f"{name}: .quad 0"]
    source = write(file.with_suffix(".s"), "\n".join([*lines, ""]))
    script = [f"{v} {{ global: {'; '.join(names)}; }};\n" for v, names in versions.items()]
    exports = write(file.with_suffix(".map"), "".join(script))
    options = ["-shared", "-nostdlib", "-Wl,-soname,libstdc++.so.6"]
    options += [f"-Wl,--version-script={exports}", str(source), "-o", str(file)]
    output(str(compiler), *options)


def main(machine: str, folder: Path) -> None:
    (folder / "sys").mkdir(parents=True, exist_ok=True)
    gcc = "g++" if machine == output("uname", "-m").strip() else f"{machine}-linux-gnu-g++"
    searched = subprocess.run(
        [gcc, "-E", "-v", "-x", "c++", "/dev/null"], check=True, capture_output=True, text=True
    ).stderr
    write(folder / "sys/single_threaded.h", SINGLE_THREADED)
    headers = [str(folder), *(p for p in re.findall(r"^ (/.*)$", searched, re.M) if "c++" in p)]
    # Frame pointers are zig's choice, GCC's is to have none.
    flags = [f"-target {machine}-linux-gnu.2.28", "-nostdinc++", "-fomit-frame-pointer", "-g0"]
    flags += [f"-I{Path(p).resolve()}" for p in headers]
    command = f"'{sys.executable}' -m ziglang c++ {' '.join(flags)}"
    compiler = write(folder / "c++", WRAPPER.format(command=command))
    compiler.chmod(0o755)

    names = ("libstdc++.so.6", "libstdc++.a", "libgcc.a", "libgcc_s.so.1")
    shared, static, *libgcc = (output(gcc, f"-print-file-name={name}").strip() for name in names)
    write_library(compiler, shared, folder / "libstdc++.so")
    newer = [str(folder / name) for name in ("libnewer.a", "newer.o", *MEMBERS)]
    source = write(folder / "newer.cc", NEWER)
    output(str(compiler), "-std=c++20", "-O2", "-fPIC", "-c", str(source), "-o", newer[1])
    output("ar", "x", "--output", str(folder), static, *MEMBERS)
    output("ar", "rcsD", *newer)
    # GCC's helpers and its unwinder, which programs that it compiles share.
    print(newer[0], folder / "libstdc++.so", *libgcc)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
