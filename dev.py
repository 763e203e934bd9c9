#!/usr/bin/env python3
"""From a bare machine to a result in one command: `python3 dev.py digits`, `python3 dev.py tests`.

Makes .venv beside this file, installs nox there once, and runs the named session of noxfile.py.
Words after the session's name go to the session; without a name the sessions are listed.
Needs only Python >= 3.10 with its headers and a C++20 compiler.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def set_up() -> None:
    """Make .venv with nox in it, unless it is there; mend one that is broken or half made."""
    has_nox = [PYTHON, "-c", "import nox"]
    if PYTHON.exists() and subprocess.run(has_nox, stderr=subprocess.DEVNULL).returncode == 0:
        return
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(
            "dev.py: this Python cannot make virtual environments: " + sys.executable + "\n"
            "On Debian and Ubuntu: apt install python3-venv. Or use another Python >= 3.10."
        )
    clear = [] if PYTHON.exists() else ["--clear"]
    subprocess.run([sys.executable, "-m", "venv", *clear, VENV], check=True)
    pins = ["--require-hashes", "--requirement", ROOT / "requirements/nox.txt"]
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", *pins], check=True)


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 (this file must explain itself to an old Python)
        sys.exit("dev.py: needs Python >= 3.10, this is " + sys.version.split()[0])
    try:
        set_up()
    except subprocess.CalledProcessError as error:
        sys.exit("dev.py: set-up failed in: " + " ".join(map(str, error.cmd)))
    session, args = sys.argv[1:2], sys.argv[2:]
    what = ["--session", *session, "--", *args] if session else ["--list"]
    nox = [PYTHON, "-m", "nox", "--noxfile", ROOT / "noxfile.py", *what]
    sys.exit(subprocess.run(nox).returncode)


if __name__ == "__main__":
    main()
