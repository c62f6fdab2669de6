"""Samples completions by requests to an endpoint, many at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info

from vrts.models.engines.engine import Engine, Request, Result
from vrts.models.policy import Policy, Prompt
from vrts.types import Completion, InputError, Sample, SamplingParams

if TYPE_CHECKING:
    from vrts.models.served.policy import ServedPolicy

WAIT_S = 0.1  # for a response, until the caller may see to frames that were decoded meanwhile
MOST_UNAVAILABLE = 8  # questions in a row that fail for want of the server, until the run ends


@dataclass(frozen=True, slots=True)
class ServedPrompt(Prompt):
    """A question with its frames."""

    messages: bytes  # JSON

    @property
    def num_tokens(self) -> int:
        """0: only the server can count them."""
        return 0


@dataclass(slots=True, eq=False)
class _Group:
    """A request, and those of its completions that are here."""

    request: Request
    done: list[Completion | None]


class ServedEngine(Engine):
    """Samples from a `ServedPolicy`, which has the endpoint and the options."""

    def __init__(self, policy: ServedPolicy) -> None:
        self._policy = policy
        # what is in flight: the completions, by their place in the group, that each call brings
        self._calls: dict[Future[dict[str, Any]], tuple[_Group, list[int]]] = {}
        self._ended: SimpleQueue[Future[dict[str, Any]]] = SimpleQueue()
        # kept back until the server answers again: if it does not, they are not recorded
        self._unavailable: list[Result] = []

    def attach(
        self, policy: Policy, device: torch.device, dtype: torch.dtype | None, will_shard: bool
    ) -> None:
        """Do nothing: the weights are the server's."""

    def sync(self, policy: Policy) -> None:
        """Do nothing: they do not change."""

    def encode(self, samples: Sequence[Sample], known: Prompt | None = None) -> list[Prompt]:
        """Compress frames; what is known of earlier ones saves nothing here."""
        return [ServedPrompt(s.question, self._policy.messages(s)) for s in samples]

    def has_room(self) -> bool:
        """Whether fewer calls wait than may be in flight, so that none is free for long."""
        return len(self._calls) < 2 * self._policy.max_concurrency

    def add(self, request: Request) -> None:
        """Queue a request."""
        G = len(request.seeds)
        self._send(_Group(request, [None] * G), range(G))

    @property
    def num_pending(self) -> int:
        """Requests that were added and have not come out."""
        return len({group for group, _ in self._calls.values()}) + len(self._unavailable)

    def step(self) -> list[Result]:
        """Wait for responses, for a moment, and return the requests that have ended.

        Raises:
            InputError: the server is gone.
        """
        try:
            if (count := len(self._unavailable)) >= MOST_UNAVAILABLE:
                raise InputError(
                    f"{count} questions in a row got no answer ({self._unavailable[-1].error}); "
                    "once the server answers, the same command continues with them"
                )
            if self._calls:
                return self._take(self._ended.get(timeout=WAIT_S))
        except Empty:
            return []
        except BaseException:  # also of an interruption, and of a vote
            self.cancel()
            raise
        last, self._unavailable = self._unavailable, []
        return last

    def cancel(self) -> None:
        """Drop all that is pending, and close its connections."""
        self._calls, self._unavailable = {}, []
        self._policy.endpoint.close()

    def release(self) -> None:
        """Close the connections, and log what was used since the start."""
        self._policy.endpoint.close()
        used, prices = self._policy.endpoint.usage, self._policy.prices
        cost = sum(used[name] * price / 1e6 for name, price in prices.items())
        rank_zero_info(
            f"{self._policy.endpoint.url}: {used['requests']:,} requests, {used['retries']:,} of "
            f"them retries; {used['prompt_tokens']:,} tokens of prompts, "
            f"{used['completion_tokens']:,} of completions"
            + (f"; price {cost:,.4f}" if prices else "")
        )

    def _send(self, group: _Group, places: Iterable[int]) -> None:
        """Call for the completions at some places of a group."""
        request, policy = group.request, self._policy
        assert isinstance(request.prompt, ServedPrompt)
        alike = request.sampling.__getitem__ if policy.one_request else lambda place: place
        for _, found in groupby(places, key=alike):
            own = list(found)
            fields = self._fields(request.sampling[own[0]], request.seeds[own[0]])
            fields |= {"max_tokens": request.max_new_tokens}
            fields |= {"n": len(own)} if len(own) > 1 else {}
            call = policy.endpoint.submit(request.prompt.messages, fields)
            self._calls[call] = group, own
            call.add_done_callback(self._ended.put)

    def _fields(self, sampling: SamplingParams, seed: int) -> dict[str, Any]:
        """How a completion is drawn, with all that a model's own defaults might change."""
        fields: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "repetition_penalty": 1.0,
            "seed": seed % 2**31,  # some servers take no more
        }
        penalties = ("presence_penalty", "frequency_penalty")
        fields |= {name: value for name in penalties if (value := getattr(sampling, name))}
        if sampling.stop:
            fields |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
        return fields | ({"logprobs": True} if self._policy.asks_logprobs else {})

    def _take(self, call: Future[dict[str, Any]]) -> list[Result]:
        """Take a response in, and return the results that are complete now."""
        from vrts.models.served.endpoint import ServerError

        if call not in self._calls:  # the group needs it no more
            return []
        group, places = self._calls.pop(call)
        request, limit = group.request, group.request.max_new_tokens
        try:
            found = self._read(call.result(), len(places), limit)
        except ServerError as error:
            self._drop(group)
            result = Result(request, (), str(error))
            self._unavailable += [result] if error.is_unavailable else []
            return [] if error.is_unavailable else [result]
        for place, completion in zip(places, found, strict=False):
            group.done[place] = completion
        if missing := places[len(found) :]:
            self._policy.endpoint.tell("choices", "gives fewer choices than n; asking for the rest")
            self._send(group, missing)
        results, self._unavailable = self._unavailable, []
        if None not in group.done or self._may_stop(group):
            self._drop(group)
            none = torch.zeros(0, device="cpu") if self._policy.asks_logprobs else None
            gone = Completion("", 0, limit, finished=False, logprobs=none, cancelled=True)
            results.append(Result(request, tuple(one or gone for one in group.done)))
        return results

    def _drop(self, group: _Group) -> None:
        """Cancel a group's other calls."""
        for call in [call for call, (other, _) in self._calls.items() if other is group]:
            del self._calls[call]
            call.cancel()

    @staticmethod
    def _may_stop(group: _Group) -> bool:
        texts = [None if one is None else one.text for one in group.done]
        means = [0.0 if one is None else one.mean_logprob for one in group.done]
        stop = group.request.should_stop
        return stop is not None and stop(texts, [] if any(map(math.isnan, means)) else means)

    def _read(self, found: dict[str, Any], n: int, limit: int) -> list[Completion]:
        """Completions of a response, n at most; the server counts their tokens together."""
        choices = found["choices"][:n]
        share, rest = divmod(found["usage"].get("completion_tokens", 0), len(choices))
        return [self._completion(c, share + (i < rest), limit) for i, c in enumerate(choices)]

    def _completion(self, choice: dict[str, Any], num_tokens: int, limit: int) -> Completion:
        policy, message = self._policy, choice["message"]
        text = message.get("content") or ""
        if thought := message.get("reasoning_content") or message.get("reasoning"):
            text = f"<think>{thought}</think>{text}"  # as the model wrote it
        logprobs = None
        if policy.asks_logprobs:
            listed = choice.get("logprobs")
            tokens = (listed.get("content") or []) if isinstance(listed, dict) else []
            num_tokens = num_tokens or len(tokens)
            if tokens:  # each has their mean: not all servers list the end token
                mean = math.fsum(token["logprob"] for token in tokens) / len(tokens)
                logprobs = torch.full((num_tokens,), mean, dtype=torch.float64, device="cpu")
            else:
                policy.endpoint.tell("logprobs", "ignores logprobs: none are given")
        if num_tokens > limit:
            policy.endpoint.tell("max_tokens", f"ignores max_tokens: {num_tokens} are given")
        finished = choice.get("finish_reason") != "length"
        return Completion(text, num_tokens, limit, finished, logprobs=logprobs)
