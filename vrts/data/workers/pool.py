"""Decoding in child processes that are killed when a video takes too long."""

from __future__ import annotations

import itertools
import queue
import threading
from concurrent.futures import Future
from multiprocessing import Pipe

from vrts.data.video.decoder import Decoder
from vrts.data.video.frames import FrameSampler
from vrts.data.video.resolution import Resolution
from vrts.data.workers.requests import Priority, Request, SharedClips, Task, request_for
from vrts.data.workers.server import START_DEADLINE_S, WorkerServer, WorkerStartError, own_server
from vrts.data.workers.worker import Setting, receive, try_decode
from vrts.types import Clip, InputError, Question, Sample

LAST = len(Priority)
"""Sorts after all priorities: ends a worker."""
EXIT_S = 1.0
"""Seconds that a worker whose connection is closed may take to end with a status of its own."""


class DecodePool:
    """Decodes videos in parallel, each within a deadline; a clip requested twice is decoded once.

    What is needed soonest goes first, and what is needed equally soon in the order of asking. A
    clip that is asked for again more urgently moves up.

    Args:
        decoder: Decodes. It is pickled into the workers, so its class must be importable.
        sampler: Chooses the frames.
        resolution: Chooses their size.
        num_workers: Child processes; 0 decodes in the calling thread, without any deadline.
        deadline_s: Seconds after which a video has failed and its worker is replaced.
        frames_fps: Frames a second of folders of frames whose questions name none.
        max_damaged: Share of a clip's frames that may be damaged; with more, the video has failed.

    Raises:
        InputError: the class of a plug-in is defined in the main module, where no child finds it.
    """

    def __init__(
        self,
        decoder: Decoder,
        sampler: FrameSampler,
        resolution: Resolution,
        num_workers: int = 2,
        deadline_s: float = 60.0,
        frames_fps: float | None = None,
        max_damaged: float = 0.1,
    ) -> None:
        for part in (decoder, sampler, resolution):
            if num_workers and type(part).__module__ == "__main__":
                raise InputError(
                    f"{type(part).__name__} is defined in the main script, where decode workers "
                    "cannot import it; move it to a module of its own, or set num_workers to 0"
                )
        self._parts = (decoder, sampler, resolution)
        self._deadline_s = deadline_s
        self._frames_fps = frames_fps
        self._max_damaged = max_damaged
        self.num_workers = num_workers
        self._tasks: queue.PriorityQueue[tuple[int, int, Task | None]] = queue.PriorityQueue()
        self._places = itertools.count()
        self._shared = SharedClips()
        self._processes: set[WorkerProcess] = set()
        self._lock = threading.Lock()
        self._closed = False
        if num_workers:
            own_server()  # it imports what it needs while the model is loaded
        # a thread waits for each child; daemons, so that a pool left open does not hold up exit
        self._threads = [
            threading.Thread(target=self._run, name=f"vrts-decode-{i}", daemon=True)
            for i in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, question: Question, num_frames: int, priority: Priority = Priority.STREAM
    ) -> Future[Sample]:
        """Begin to decode a question's video.

        A question's ``metadata["max_frames"]`` caps the frames.

        A bad video gives a sample with an error, never an exception. The future raises only
        where no worker can be started (`WorkerStartError`) or the pool is closed meanwhile.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("the decode pool is closed")
        request = request_for(question, num_frames, self._frames_fps)
        future, task = self._shared.join(question, request, priority)
        if task is None:
            return future
        if self.num_workers:
            self._put(task.priority, task)
        elif self._shared.begin(task):
            self._finish(task, try_decode(*self._parts, request))
        return future

    def close(self) -> None:
        """End the workers at once; what was not decoded yet is cancelled. Idempotent."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        for _ in self._threads:
            self._put(LAST, None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _put(self, priority: int, task: Task | None) -> None:
        self._tasks.put((priority, next(self._places), task))

    def _run(self) -> None:
        """Serve tasks with a child of its own, until None comes."""
        process: WorkerProcess | None = None
        while (task := self._tasks.get()[-1]) is not None:
            if self._closed:
                self._shared.cancel(task)
            elif self._shared.begin(task):
                process = self._serve(process, task)
        if process is not None:
            self._end(process)

    def _serve(
        self, process: WorkerProcess | None, task: Task, is_retry: bool = False
    ) -> WorkerProcess | None:
        """Decode one video and return the child for the next one, None where it is gone.

        A child that dies may have been killed for the memory of others, so a video is tried once
        more on a new one.
        """
        path = task.request.path
        try:
            process = process or self._start()
            result = process.decode(task.request, self._deadline_s)
        except WorkerStartError as error:
            if not is_retry and not self._closed:
                return self._serve(None, task, is_retry=True)
            self._shared.fail(task, error)
            return None
        except (EOFError, OSError):
            status = self._end(process, EXIT_S) if process else None
            if self._closed:
                self._shared.fail(task, RuntimeError("the decode pool was closed meanwhile"))
                return None
            if not is_retry:
                return self._serve(None, task, is_retry=True)
            reason = f"{path}: it crashed two decode workers, the last with status {status}"
            self._shared.finish(task, reason)
            return None
        if result is None:
            self._end(process)
            self._shared.finish(task, f"{path}: no frame within {self._deadline_s:g} s")
            return None
        self._finish(task, result)
        return process

    def _finish(self, task: Task, result: Clip | str) -> None:
        """Give out a clip, unless too many of its frames are damaged."""
        if isinstance(result, Clip) and result.num_damaged > self._max_damaged * result.num_frames:
            result = (
                f"{task.request.path}: {result.num_damaged} of {result.num_frames} frames are "
                f"damaged, more than data.max_damaged ({self._max_damaged:g}) allows"
            )
        self._shared.finish(task, result)

    def _start(self) -> WorkerProcess:
        server = own_server()
        while not self._closed and not server.is_ready(within_s=0.1):
            pass
        with self._lock:
            if self._closed:
                raise WorkerStartError("the decode pool was closed meanwhile")
            process = WorkerProcess(server, self._parts)
            self._processes.add(process)
        try:
            process.wait_until_ready()
        except WorkerStartError:
            self._end(process)
            raise
        return process

    def _end(self, process: WorkerProcess, within_s: float = 0.0) -> int | None:
        status = process.kill(within_s)
        process.connection.close()
        with self._lock:
            self._processes.discard(process)
        return status


class WorkerProcess:
    """A child of the server with a connection to it."""

    def __init__(
        self, server: WorkerServer, parts: tuple[Decoder, FrameSampler, Resolution]
    ) -> None:
        self._server = server
        self._parts = parts
        self._lock = threading.Lock()
        self._status: int | None = None
        self._is_ended = False
        self.connection, theirs = Pipe()
        with theirs:
            self.pid = server.start_worker(theirs)

    def wait_until_ready(self) -> None:
        """Hand over the decoder and wait for the first answer.

        Raises:
            WorkerStartError: the process ended, or did not answer in time.
        """
        try:
            self.connection.send(Setting.of_this_process())
            self.connection.send(self._parts)
            if not self.connection.poll(START_DEADLINE_S):
                raise WorkerStartError(
                    f"data.num_workers: a decode worker gave no answer within {START_DEADLINE_S:g} "
                    "s of its start; the machine is overloaded: set fewer of them"
                )
            self.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerStartError(
                f"data.num_workers: a decode worker ended with status {self.kill(EXIT_S)} at its "
                "start; see its message above. Without one the machine was out of memory: set "
                "fewer of them"
            ) from error

    def decode(self, request: Request, deadline_s: float) -> Clip | str | None:
        """Return a clip, or the reason for none, or None where the deadline has passed.

        Raises:
            EOFError, OSError: the process died.
        """
        self.connection.send(request)
        if not self.connection.poll(deadline_s):
            return None
        return receive(self.connection)

    def kill(self, within_s: float = 0.0) -> int | None:
        """End the process; may be called more than once.

        Args:
            within_s: Seconds that it has to end by itself.

        Returns:
            Its exit status, None where it hangs in the kernel.
        """
        with self._lock:
            if not self._is_ended:
                self._status = self._server.end_worker(self.pid, within_s)
                self._is_ended = True
            return self._status
