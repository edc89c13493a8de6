"""The bits of products and decompositions do not depend on how many threads there are."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from surgeon.numeric.blas import is_pinned, one_thread, threads

# Prints hashes, once inside of `one_thread` and once without it.
HASHES = """
import hashlib, numpy as np
from surgeon.numeric.blas import one_thread
from surgeon.numeric.matrices import coefficients, product, right_singular
a = np.random.default_rng(0).standard_normal((700, 500))
def digest():
    arrays = [product(a, a.T), right_singular(a, 9), coefficients(a, a[:40]), np.linalg.qr(a)[0]]
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()
with one_thread():
    print(digest())
print(digest())
"""


def hashes(count: str) -> list[str]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": count, "OMP_NUM_THREADS": count}
    command = [sys.executable, "-c", HASHES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow
def test_bits_are_those_of_one_thread_whatever_the_library_was_told() -> None:
    if threads() is None:
        pytest.skip("NumPy's linear algebra is of a library that takes no number of threads")
    pinned, without = hashes("1")
    assert pinned == without
    assert hashes("2")[0] == hashes("8")[0] == pinned


def test_number_of_threads_is_as_before_afterwards() -> None:
    found = threads()
    assert found is not None
    before = found.get()
    found.set(2)
    try:
        with one_thread(), one_thread():
            assert found.get() == 1
        assert found.get() == 2
    finally:
        found.set(before)


def test_threads_that_leave_earlier_do_not_unpin_others() -> None:
    found = threads()
    assert found is not None
    before = found.get()
    found.set(2)
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread():
            inside.set()
            done.wait(10)

    worker = threading.Thread(target=other)
    try:
        worker.start()
        inside.wait(10)
        with one_thread():
            np.ones((2, 2)) @ np.ones((2, 2))
        assert found.get() == 1
        done.set()
        worker.join()
        assert found.get() == 2
    finally:
        done.set()
        found.set(before)


def test_without_a_library_that_we_know_the_environment_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("surgeon.numeric.blas.threads", lambda: None)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert not is_pinned()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert is_pinned()
    with one_thread():
        pass
