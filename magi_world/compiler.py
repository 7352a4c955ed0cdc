"""Whether torch.compile can work here."""

import os
import shutil


def cpp_compiler() -> str | None:
    """Where the C++ compiler is that torch would call on a CPU; None if there is none."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)
