"""Predicts in a process of its own until it kills itself; the argument is a job as JSON."""

import json
import signal
import sys
from pathlib import Path

from tests.callbacks.runs import predict, scripted
from tests.callbacks.test_writer import seven


def main() -> None:
    job = json.loads(sys.argv[1])
    script = {
        id: {int(T): answers for T, answers in by_frames.items()}
        for id, by_frames in job["script"].items()
    }
    policy = scripted(script, stop_after=job["stop_after"], signal=signal.SIGKILL)
    predict(Path(job["folder"]), policy, seven(job["videos"]))


if __name__ == "__main__":
    main()
