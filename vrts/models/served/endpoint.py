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
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal
from lightning_utilities.core.rank_zero import rank_zero_warn

from vrts.terminal import printable
from vrts.types import InputError

if TYPE_CHECKING:
    from vrts.models.served.policy import ServedPolicy

BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 60.0
RETRIED = (200, 408, 409, 425, 429)  # and 5xx; 200 is here for responses without completions
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


class Endpoint:
    """Sends requests for chat completions; retries them, and drops fields that are refused.

    Args:
        policy: has the options.
    """

    def __init__(self, policy: ServedPolicy) -> None:
        self.url, self.usage = policy.base_url, Counter[str]()
        """``usage`` counts requests, retries, and tokens by the server's names."""
        self._policy = policy
        self._key = os.environ.get(policy.api_key_variable, "").strip()
        self._told: set[str] = set()
        self._sent_as: dict[str, str] = {}  # other names of fields; empty for those left out
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
            model = self._policy.model
            (nearest,) = get_close_matches(model, names, 1, 0.0) or [model]
            hint = "" if nearest == model else f"; the nearest of its models is {nearest!r}"
            raise InputError(f"model.policy: cannot ask about a frame: {error}{hint}") from error
        finally:
            self.close()

    def submit(self, messages: bytes, fields: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Send a request, with messages as JSON, in its turn.

        The future gets a response with one text or more, or a `ServerError`; cancelling it closes
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
            self._slots = anyio.CapacityLimiter(self._policy.max_concurrency)
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
        attempt, max_retries = 0, self._policy.max_retries
        async with self._slots:  # kept while waiting: a busy server gets no further requests
            while True:
                await anyio.sleep(max(0.0, self._not_before - time.monotonic()))
                sent = {new: v for k, v in fields.items() if (new := self._sent_as.get(k, k))}
                try:
                    return await self._attempt(messages, sent)
                except ServerError as error:
                    if self._drop(error, sent):
                        continue
                    wait_s = error.wait_s
                    too_long = wait_s is None or wait_s > self._policy.timeout_s
                    if wait_s is None or too_long or attempt == max_retries:
                        raise
                    self.tell("retry", f"is asked again, {max_retries} times at most: {error}")
                self.usage["retries"] += 1
                self._not_before = max(self._not_before, time.monotonic() + wait_s)
                backoff_s = min(BACKOFF_S * 2**attempt, LONGEST_BACKOFF_S)
                await anyio.sleep(backoff_s * random.uniform(0.5, 1.0))
                attempt += 1

    async def _attempt(self, messages: bytes, sent: Mapping[str, Any]) -> dict[str, Any]:
        """The response to a request; it has one text or more, and counts of tokens in ``usage``."""
        self.usage["requests"] += 1
        head = json.dumps({"model": self._policy.model, **sent, **self._policy.extra_body}).encode()
        content = b'%b, "messages": %b}' % (head.removesuffix(b"}"), messages)
        found = await self._send("POST", "chat/completions", content)
        if not texts_of(found):  # such as an error with the status 200
            words = self._clean(_message(found))
            raise ServerError(f"{self.url} gave no choices: {words}", 200, wait_s=0.0)
        usage = found.get("usage") if isinstance(found.get("usage"), dict) else {}
        usage = {name: count for name, count in usage.items() if isinstance(count, int)}
        self.usage.update(usage)
        return {**found, "usage": usage}

    async def _send(self, method: str, path: str, content: bytes | None = None) -> Any:
        """Return the JSON of a response; raises `ServerError` for a status other than 200."""
        timeout_s, key_variable = self._policy.timeout_s, self._policy.api_key_variable
        try:
            with anyio.fail_after(timeout_s):
                response = await self._client.request(method, f"{self.url}/{path}", content=content)
        except TimeoutError as error:
            note = f"{self.url} gave no answer within {timeout_s:g} s"
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
            why = f"the key in {key_variable} is refused"
            note += f" ({why if self._key else f'{key_variable} holds no key'})"
        is_retried = status in RETRIED or status >= 500
        wait_s = _seconds(response.headers.get("Retry-After", "")) if is_retried else None
        raise ServerError(note, status, text, wait_s)

    def _drop(self, error: ServerError, sent: Mapping[str, Any]) -> bool:
        """Note the fields of a request that an error says are unknown; False for none."""
        text = error.text
        if error.status not in (400, 422) or not UNKNOWN.search(text):
            return False
        # in quotes, behind a colon, or at the beginning: elsewhere they are words like any
        names = {name for name in sent if re.search(rf"(^|[\"'`]|: ){name}\b", text)}
        names.discard("max_completion_tokens" if "max_completion_tokens" in text else "max_tokens")
        for name in names:
            self._sent_as[name] = "max_completion_tokens" if name == "max_tokens" else ""
            instead = f"sent as {self._sent_as[name]}" if self._sent_as[name] else "left out"
            self.tell(name, f"refuses {name} {sent[name]!r}, now {instead}: {text}")
        return bool(names)

    def _clean(self, text: str) -> str:
        """Make a line of a text from the server, without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return printable(" ".join(text.split()), MOST_CHARACTERS)


def texts_of(found: Any) -> list[str]:
    """Texts of a response, one or more; none where it is not what was asked for."""
    try:
        texts = [choice["message"].get("content") or "" for choice in found["choices"]]
    except (KeyError, TypeError, AttributeError):
        return []
    return texts if all(isinstance(text, str) for text in texts) else []


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
