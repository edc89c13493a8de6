"""The loops as other compilers' settings build them, and as they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import surgeon

ROOT = Path(surgeon.__file__).parent.parent
NUMERIC = ROOT / "surgeon" / "numeric"
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-ffp-contract=off", "-shared",
         "-fPIC", "-fvisibility=hidden"]  # fmt: skip
BUILDS = {
    "sanitized": ["-O1", "-g", "-DSURGEON_PLAIN", "-fsanitize=address,undefined",
                  "-fno-sanitize-recover=all"],
    "oldest processor": ["-O3", "-march=x86-64", "-DSURGEON_PLAIN"],
    "not optimised": ["-O0"],
    "clang": ["-O3"],
}  # fmt: skip
RUN = """
import sys
from pathlib import Path
import pytest
from surgeon.numeric import compiled
compiled.LIBRARY = Path(sys.argv[1])
assert compiled.kernels().startswith("compiled")
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""
LAWS = [
    "tests/numeric/test_kernels.py",
    "tests/numeric/test_drawing.py",
    "tests/merges/test_compiled.py",
]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("build", BUILDS)
def test_laws_hold_however_it_is_built(build, tmp_path):
    library = tmp_path / "kernels.so"
    sources = sorted(map(str, NUMERIC.glob("*.c")))
    compiler = "clang" if build == "clang" else "gcc"
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler}")
    subprocess.run([compiler, *FLAGS, *BUILDS[build], *sources, "-o", library], check=True)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    if "-fsanitize" in " ".join(BUILDS[build]):
        found = subprocess.run(
            ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        )
        environment["LD_PRELOAD"] = found.stdout.strip()
    command = [sys.executable, "-c", RUN, library, *LAWS]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]


@pytest.mark.skipif(not shutil.which("gcc"), reason="there is no gcc")
@pytest.mark.parametrize("compiler", ["gcc", "false"])
def test_installing_does_with_and_without_a_compiler(compiler, tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "surgeon", "recipes"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for library in tmp_path.rglob("*.so"):
        library.unlink()
    ran = subprocess.run(
        [sys.executable, "setup.py", "build", "--build-lib", "built"], cwd=tmp_path,
        env={**os.environ, "CC": compiler}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    has_loops = compiler == "gcc"
    assert (tmp_path / "built" / "surgeon" / "numeric" / "kernels.so").exists() == has_loops
    assert ran.stdout.count("NumPy loops will do") == (not has_loops)
    code = "from surgeon.numeric.compiled import kernels; print(kernels())"
    command = [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else []
    if command:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "built")}
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert said.stdout.startswith("compiled" if has_loops else "numpy")
