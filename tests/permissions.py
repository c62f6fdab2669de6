"""Permissions that hold for root too, as tests in containers run."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import pytest

OVERRIDING = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, with which no permission is asked for."""
VERSION_3 = 0x20080522


@contextlib.contextmanager
def permissions_count() -> Iterator[None]:
    """Whoever runs the tests is refused what the permissions of a file refuse."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("needs Linux, where root can be refused something")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    had = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    assert libc.capget(header, had) == 0
    fewer = (ctypes.c_uint32 * 6)(*had)
    fewer[0] &= ~OVERRIDING
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, had) == 0
