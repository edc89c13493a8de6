"""Builds the compiled loops, where there is a compiler; NumPy does without them."""

from __future__ import annotations

import platform
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# Never -ffast-math: the loops give the bits that NumPy gives.
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
         "-fvisibility=hidden", "-g0"]  # fmt: skip
# The clones for processors that have registers of 512 bits use them: half as many steps.
if (sys.platform, platform.machine()) == ("linux", "x86_64"):
    FLAGS += ["-mprefer-vector-width=512"]
FILES = ("kernels", "selection", "changes", "mixes", "ranks", "crc32", "philox", "reading")
SOURCES = [f"surgeon/numeric/{name}.c" for name in FILES]


class BuildLoops(build_ext):
    """A plain shared library: ctypes loads it, and it knows nothing of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols or []

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            print(f"surgeon: the loops were not compiled ({error}); NumPy loops will do")

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            print(f"surgeon: the loops were not compiled ({error}); NumPy loops will do")


class Wheel(bdist_wheel):
    """One wheel for all versions of Python: the loops use nothing of it."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "surgeon.numeric.kernels",
            SOURCES,
            depends=["surgeon/numeric/kernels.h"],
            extra_compile_args=FLAGS,
            optional=True,
        )
    ],
    cmdclass={"bdist_wheel": Wheel, "build_ext": BuildLoops},
)
