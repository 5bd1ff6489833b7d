"""Builds liboctet and octet._C with CMake, the only truth about sources and flags, and installs them into octet."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configures build/python, builds it and installs it where setuptools wants it: a wheel or an editable tree."""

    def build_extension(self, ext: Extension) -> None:
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / "python"
        options = [
            "-DCMAKE_BUILD_TYPE=Release",
            "-DOCTET_BUILD_PYTHON=ON",
            "-DOCTET_BUILD_TESTS=OFF",
            "-DOCTET_BUILD_EXAMPLES=OFF",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={package}",
            "-DCMAKE_INSTALL_LIBDIR=lib",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),  # the caller's word comes last and wins
        ]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.check_call(["cmake", "-S", str(ROOT), "-B", str(build), *options])
        subprocess.check_call(["cmake", "--build", str(build), "--target", "_C", "--parallel", jobs])  # and liboctet
        subprocess.check_call(["cmake", "--install", str(build)])
        if self.editable_mode:  # setuptools brings over octet._C alone; the library and headers belong beside it
            subprocess.check_call(["cmake", "--install", str(build), "--prefix", str(ROOT / "python" / "octet")])


setup(ext_modules=[Extension("octet._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
