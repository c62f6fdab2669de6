"""What other processes are, asked of the operating system."""

import subprocess
import time
from pathlib import Path

from vrts.data.workers.server import own_server


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_is_ending(*pids: int) -> None:
    """Each of them ends soon, or has ended."""
    end_s = time.monotonic() + 30
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < end_s, f"left behind: {[pid for pid in pids if is_running(pid)]}"
        time.sleep(0.05)


def decode_workers() -> list[int]:
    """The workers of this process, zombies too."""
    server = str(own_server().process.pid)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", server], capture_output=True)
    return [int(pid) for pid in listed.stdout.split()]
