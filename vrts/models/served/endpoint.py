"""An OpenAI-compatible endpoint, called from a background thread."""

from __future__ import annotations

import atexit
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal
from lightning_utilities.core.rank_zero import rank_zero_warn

from vrts.terminal import printable, shorten
from vrts.types import InputError

BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 60.0
RETRIED = (408, 409, 425, 429)  # and 5xx
OPTIONAL = (
    "seed", "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "stop", "include_stop_str_in_output", "logprobs", "n", "max_tokens",
)  # fmt: skip
"""Fields that are left out where a server does not know them; ``max_tokens`` is renamed."""
UNKNOWN = re.compile(
    r"unknown|unrecogni[sz]ed|unexpected|unsupported|not (be )?(supported|permitted|allowed)|"
    r"does not support|cannot find|extra_forbidden",
    re.IGNORECASE,
)
MOST_CHARACTERS = 300  # of a server's message


class ServerError(Exception):
    """A request without a completion; retried where it has a time to wait, which may be 0."""

    def __init__(
        self, line: str, status: int | None = None, text: str = "", wait_s: float | None = None
    ) -> None:
        super().__init__(line)
        self.status, self.text, self.wait_s = status, text, wait_s
        # whether other requests are likely to fail for the same reason
        self.is_unavailable = wait_s is not None or status in (401, 403)


@dataclass(eq=False)
class Endpoint:
    """Sends requests for chat completions; retries them, and drops fields that are refused."""

    url: str
    model: str
    key_variable: str  # environment variable that holds the API key, if there is one
    max_concurrency: int
    max_retries: int
    timeout_s: float  # of each attempt

    def __post_init__(self) -> None:
        """Read the key."""
        self.usage: Counter[str] = Counter()  # requests, retries, and tokens by the server's names
        self._key = os.environ.get(self.key_variable, "").strip()
        self._told: set[str] = set()
        self._dropped: set[str] = set()
        self._not_before = 0.0  # by `time.monotonic`; no request is sent until then
        self._pending: set[Future[dict[str, Any]]] = set()
        self._running: ExitStack | None = None
        atexit.register(self.close)  # of a run that ends in the middle
        self._portal: BlockingPortal
        self._client: httpx2.AsyncClient
        self._slots: anyio.CapacityLimiter

    def check(self, messages: bytes) -> None:
        """Ask a first question, so that what can be known beforehand fails now.

        Raises:
            InputError: no server, no such model, a refused key, or frames that are not taken.
        """
        names: list[str] = []
        self._start()
        try:
            names = self._portal.call(self._models)
            self._portal.call(self._complete, messages, {"max_tokens": 16})
        except ServerError as error:
            (hint,) = get_close_matches(self.model, names, 1, 0.0) or [self.model]
            found = "" if hint == self.model else f"; the nearest of its models is {hint!r}"
            raise InputError(f"model.policy: cannot ask about a frame: {error}{found}") from error
        finally:
            self.close()
        if names and self.model not in names:
            self.tell("model", f"answers, but does not list a model {self.model!r}")

    def submit(self, messages: bytes, fields: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Send a request, with messages as JSON, in its turn.

        The future gets a response with one choice or more, or a `ServerError`; cancelling it closes
        the connection.
        """
        self._start()
        future = self._portal.start_task_soon(self._complete, messages, fields)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def close(self) -> None:
        """Cancel what is in flight and end the thread; `submit` starts another. Idempotent."""
        for future in list(self._pending):
            future.cancel()
        if self._running is not None:
            self._running.close()
            self._running = None

    def tell(self, key: str, message: str) -> None:
        """Warn of something, once a key."""
        if key not in self._told:
            self._told.add(key)
            rank_zero_warn(f"{self.url} {self._clean(message)}")

    def _start(self) -> None:
        if self._running is not None:
            return
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        headers["Content-Type"] = "application/json"
        # no limits but those of `_complete` and `_send`
        client = httpx2.AsyncClient(headers=headers, timeout=None, limits=httpx2.Limits())
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            self._client = stack.enter_context(self._portal.wrap_async_context_manager(client))
            self._slots = anyio.CapacityLimiter(self.max_concurrency)
            self._running = stack.pop_all()

    async def _models(self) -> list[str]:
        """Names of the models; none where the endpoint does not list them."""
        try:
            return [str(model["id"]) for model in (await self._send("GET", "models"))["data"]]
        except (ServerError, KeyError, TypeError) as error:
            if getattr(error, "status", 0) in (None, 401, 403):
                raise
            return []

    async def _complete(self, messages: bytes, fields: Mapping[str, Any]) -> dict[str, Any]:
        attempt = 0
        async with self._slots:  # kept while waiting: a busy server gets no further requests
            while True:
                await anyio.sleep(max(0.0, self._not_before - time.monotonic()))
                try:
                    return await self._attempt(messages, fields)
                except ServerError as error:
                    wait_s = error.wait_s
                    if wait_s is None or wait_s > self.timeout_s or attempt == self.max_retries:
                        raise
                    self.tell("retry", f"is asked again, {self.max_retries} times at most: {error}")
                self.usage["retries"] += 1
                self._not_before = max(self._not_before, time.monotonic() + wait_s)
                backoff_s = min(BACKOFF_S * 2**attempt, LONGEST_BACKOFF_S)
                await anyio.sleep(backoff_s * random.uniform(0.5, 1.0))
                attempt += 1

    async def _attempt(self, messages: bytes, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request, again without those fields that the server does not know."""
        while True:
            body = {k: v for k, v in fields.items() if k not in self._dropped}
            if "max_tokens" in self._dropped:
                body["max_completion_tokens"] = fields["max_tokens"]
            head = json.dumps({"model": self.model, **body}).encode().removesuffix(b"}")
            self.usage["requests"] += 1
            try:
                content = b'%b, "messages": %b}' % (head, messages)
                found = await self._send("POST", "chat/completions", content)
            except ServerError as error:
                if error.status in (400, 422) and self._drop(error.text, body):
                    continue
                raise
            if not _has_choices(found):  # such as an error with the status 200
                note = f"{self.url} gave no choices: {self._clean(_message(found))}"
                raise ServerError(note, 200, wait_s=0.0)
            usage = found.get("usage") if isinstance(found.get("usage"), dict) else {}
            usage = {name: count for name, count in usage.items() if isinstance(count, int)}
            self.usage.update(usage)
            return {**found, "usage": usage}

    async def _send(self, method: str, path: str, content: bytes | None = None) -> Any:
        """Return the JSON of a response; raises `ServerError` for a status other than 200."""
        try:
            with anyio.fail_after(self.timeout_s):
                response = await self._client.request(method, f"{self.url}/{path}", content=content)
        except TimeoutError as error:
            note = f"{self.url} gave no answer within {self.timeout_s:g} s"
            raise ServerError(note, wait_s=0.0) from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            note = f"{self.url} is not there or broke off ({type(error).__name__} {error})"
            raise ServerError(self._clean(note), wait_s=0.0) from error
        status, text = response.status_code, response.text
        try:
            words = _message(found := response.json())
            if status == 200:
                return found
        except ValueError:
            words = text or response.reason_phrase  # such as a gateway's HTML
        note = f"{self.url}: {status} {self._clean(words)}"
        if status in (401, 403):
            name = self.key_variable
            note += f" (the key in {name} is refused)" if self._key else f" ({name} holds no key)"
        is_retried = status in RETRIED or status >= 500 or status == 200
        wait_s = _seconds(response.headers.get("Retry-After", "")) if is_retried else None
        raise ServerError(note, status, text, wait_s)

    def _drop(self, text: str, body: Mapping[str, Any]) -> bool:
        """Note the fields of a request that a response says are unknown; False for none."""
        # in quotes, behind a colon, or at the beginning: elsewhere they are words like any
        named = {name for name in OPTIONAL if re.search(rf"(^|[\"'`]|: ){name}\b", text)}
        named &= body.keys() if UNKNOWN.search(text) else set()
        if "max_completion_tokens" not in text:
            named.discard("max_tokens")
        for name in sorted(named - self._dropped):
            self._dropped.add(name)
            instead = "sent as max_completion_tokens" if name == "max_tokens" else "left out"
            self.tell(name, f"refuses {name} {body[name]!r}, now {instead}: {text}")
        return bool(named)

    def _clean(self, text: str) -> str:
        """Make a line of a text from the server, without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return shorten(printable(" ".join(text.split())), MOST_CHARACTERS)


def _seconds(retry_after: str) -> float:
    """What a ``Retry-After`` asks to wait, which is a number or a date; 0 without one."""
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0


def _message(found: Any) -> str:
    """The server's own words, from whichever of the usual places."""
    for key in ("error", "detail", "message"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return found if isinstance(found, str) else json.dumps(found)


def _has_choices(found: Any) -> bool:
    """Whether a response has one completion or more, each with a text, which may be None."""
    choices = found.get("choices") if isinstance(found, dict) else None
    return isinstance(choices, list) and bool(choices) and all(map(_has_text, choices))


def _has_text(choice: Any) -> bool:
    message = choice.get("message") if isinstance(choice, dict) else None
    return isinstance(message, dict) and isinstance(message.get("content"), str | None)
