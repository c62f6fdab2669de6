"""Completions by requests to a server that behaves, and to one that does not."""

import logging
import re
import subprocess
import sys
import threading
import time
import warnings

import pytest

from tests.models.conftest import make_sample
from tests.models.served.server import Reply, completion, letter, refusal, text_of
from vrts.models.engines.engine import Request
from vrts.models.prediction.predictor import Plan, Predictor
from vrts.models.served.engine import MOST_UNAVAILABLE
from vrts.models.served.policy import ServedPolicy
from vrts.types import InputError, SamplingParams
from vrts.voting import VotingRule


def load(server, **options) -> ServedPolicy:
    policy = ServedPolicy(server.url, "tiny", **options)
    policy.load()
    return policy


def samples(count: int, num_frames: int = 2):
    return [
        make_sample(i, num_frames, (28, 28), f"Which colour is number {i}?") for i in range(count)
    ]


def ask(policy, count: int = 1, G: int = 3, sampling: SamplingParams | None = None, stop=None):
    """Results of so many questions, in their order."""
    engine = policy.default_engine()
    requests = [
        Request(prompt, (sampling or SamplingParams(),) * G, tuple(range(G)), 8, stop)
        for prompt in engine.encode(samples(count))
    ]
    try:
        return engine.generate(requests)
    finally:
        engine.release()


def letters(result) -> str:
    assert result.error is None, result.error
    return "".join(re.findall("<answer>(.)</answer>", "".join(c.text for c in result.completions)))


@pytest.fixture
def expected(server):
    """What the undisturbed server answers to three questions."""
    found = [letters(result) for result in ask(load(server), 3)]
    server.bodies.clear()
    assert len(set(found)) > 1
    return found


class TestRequests:
    def test_a_completion_is_a_request_with_its_seed_and_sampling(self, server):
        sampling = SamplingParams(
            0.5,
            top_p=0.9,
            top_k=20,
            presence_penalty=0.1,
            frequency_penalty=0.2,
            stop=("</answer>",),
        )
        (result,) = ask(load(server, extra_body={"min_p": 0.1}), sampling=sampling)
        found = [{k: v for k, v in body.items() if k != "messages"} for body in server.bodies]
        assert sorted(found, key=lambda body: body["seed"]) == [
            {
                "model": "tiny", "seed": seed, "temperature": 0.5, "top_p": 0.9, "top_k": 20,
                "repetition_penalty": 1.0, "presence_penalty": 0.1, "frequency_penalty": 0.2,
                "stop": ["</answer>"], "include_stop_str_in_output": True, "max_tokens": 8,
                "min_p": 0.1,
            }
            for seed in range(3)
        ]  # fmt: skip
        assert all("Which colour is number 0?" in text_of(body) for body in server.bodies)
        assert [(c.num_tokens, c.finished) for c in result.completions] == [(5, True)] * 3
        assert all(c.token_ids is None and c.logprobs is None for c in result.completions)

    def test_model_s_own_truncation_is_switched_off(self, server):
        ask(load(server), G=1)
        assert (server.bodies[0]["top_k"], server.bodies[0]["top_p"]) == (-1, 1.0)

    def test_what_was_cut_off_is_not_finished(self, server):
        server.rule = lambda body, index: completion(body, ["half a"], finish_reason="length")
        (result,) = ask(load(server), G=1)
        assert not result.completions[0].finished
        assert not result.completions[0].cancelled

    def test_thoughts_that_the_server_takes_apart_are_put_back(self, server):
        message = {"content": "<answer>A</answer>", "reasoning_content": "red"}
        server.rule = lambda body, index: completion(body, ["x"], message=message)
        (result,) = ask(load(server), G=1)
        assert result.completions[0].text == "<think>red</think><answer>A</answer>"

    def test_log_probs_are_given_where_they_are_asked_for(self, server):
        tokens = {"content": [{"logprob": -0.5}, {"logprob": -1.5}]}
        server.rule = lambda body, index: completion(body, ["A"], logprobs=tokens)
        (result,) = ask(load(server, logprobs=True), G=1)
        assert server.bodies[0]["logprobs"] is True
        assert result.completions[0].mean_logprob == -1.0

    def test_what_is_ignored_is_told_once(self, server):
        server.rule = lambda body, index: completion(body, ["A"]).replace(
            '"completion_tokens": 5', '"completion_tokens": 50'
        )
        policy = load(server, logprobs=True)
        with pytest.warns(UserWarning, match="ignores") as told:
            ask(policy, 2)
        messages = [str(one.message) for one in told]
        assert len([m for m in messages if "ignores logprobs" in m]) == 1
        assert len([m for m in messages if "ignores max_tokens: 50" in m]) == 1

    def test_one_request_asks_for_all_choices(self, server):
        (result,) = ask(load(server, one_request=True), G=4)
        assert [body["n"] for body in server.bodies] == [4]
        assert letters(result) == "".join(letter(server.bodies[0], i) for i in range(4))
        assert [c.num_tokens for c in result.completions] == [5] * 4

    def test_usage_is_counted_with_its_price(self, server, caplog):
        caplog.set_level(logging.INFO)
        ask(load(server, prompt_price=2.0, completion_price=10_000.0), 2)
        # 6 requests and the check, of 100 and 5 tokens
        assert (
            "7 requests, 0 of them retries; 700 tokens of prompts, 35 of completions" in caplog.text
        )
        assert "price 0.3514" in caplog.text


class TestMisbehaviour:
    @pytest.mark.parametrize(
        "reply",
        [
            refusal(429, "slow down", Retry_After="0.05"),
            refusal(500, "out of luck"),
            refusal(503, "loading"),
            Reply(200, '{"choices": [', is_cut=True),
            Reply(200, "<!DOCTYPE html><html>Sign in</html>"),
            Reply(200, '{"error": {"code": 502, "message": "upstream"}}'),
            Reply(200, '{"choices": []}'),
            Reply(200, '{"choices": ["A"]}'),
        ],
        ids=["429", "500", "503", "cut", "html", "error in 200", "no choices", "strange choices"],
    )
    def test_what_may_pass_is_tried_again(self, server, expected, reply, caplog):
        server.rule = lambda body, index: reply if index % 2 == 0 else None
        caplog.set_level(logging.INFO)
        found = ask(load(server, max_retries=20, max_concurrency=2), 3)
        assert [letters(result) for result in found] == expected
        assert len(server.bodies) > 9
        assert f"{len(server.bodies) - 9} of them retries" in caplog.text

    def test_retry_after_holds_all_requests_back(self, server):
        sent: list[float] = []

        def rule(body, index):
            sent.append(time.monotonic())
            return refusal(429, "slow down", Retry_After="0.5") if index == 0 else None

        server.rule = rule
        ask(load(server, max_concurrency=1))
        assert sent[1] - sent[0] >= 0.5
        assert len(sent) == 4

    def test_a_request_that_hangs_fails_at_its_deadline_and_no_other(self, server):
        hanging = "number 1?"
        server.rule = lambda body, index: Reply(hang_s=3) if hanging in text_of(body) else None
        first, second, third = ask(load(server, timeout_s=0.5, max_retries=1), 3)
        assert second.error == f"{server.url} gave no answer within 0.5 s"
        assert not second.completions
        assert letters(first)
        assert letters(third)
        assert 2 <= sum(hanging in text_of(body) for body in server.bodies) <= 6

    def test_a_question_s_own_failure_has_the_server_s_words(self, server):
        message = "This model's maximum context length is 4096 tokens.\nYou requested 5000."
        server.rule = lambda body, index: refusal(400, message) if "0?" in text_of(body) else None
        first, second = ask(load(server), 2)
        assert first.error == f"{server.url}: 400 {message}".replace("\n", " ")
        assert letters(second)
        assert sum("0?" in text_of(body) for body in server.bodies) <= 3, "none is tried again"

    @pytest.mark.parametrize(
        "refuse",
        [
            lambda name: refusal(400, f"Unrecognized request argument supplied: {name}"),
            lambda name: Reply(
                422, f'{{"detail": "Unexpected fields in the request: {{\'{name}\'}}"}}'
            ),
            lambda name: Reply(
                422,
                f'{{"detail":[{{"type":"extra_forbidden","loc":["body","{name}"],'
                '"msg":"Extra inputs are not permitted"}]}',
            ),
        ],
    )
    def test_unknown_fields_are_left_out_and_told_once(self, server, expected, refuse):
        unknown = ("repetition_penalty", "top_k")
        server.rule = lambda body, index: next((refuse(n) for n in unknown if n in body), None)
        policy = load(server)
        with pytest.warns(UserWarning, match="refuses") as told:
            found = ask(policy, 3)
        assert [letters(result) for result in found] == expected
        messages = [str(one.message) for one in told]
        assert [sum(f"refuses {name} " in m for m in messages) for name in unknown] == [1, 1]
        assert server.bodies[-1].keys().isdisjoint(unknown)
        assert "seed" in server.bodies[-1]

    def test_max_tokens_has_another_name(self, server):
        def rule(body, index):
            if "max_tokens" in body:
                return refusal(
                    400,
                    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                    "'max_completion_tokens' instead.",
                )
            return None

        server.rule = rule
        policy = load(server)
        with pytest.warns(UserWarning, match="now sent as max_completion_tokens"):
            ask(policy, G=1)
        assert server.bodies[-1]["max_completion_tokens"] == 8

    def test_a_length_is_never_left_out(self, server):
        server.rule = lambda body, index: refusal(400, "unknown field: 'max_tokens'")
        (result,) = ask(load(server), G=1)
        assert result.error.endswith("400 unknown field: 'max_tokens'")
        assert len(server.bodies) == 1

    def test_a_length_that_is_refused_is_no_unknown_field(self, server):
        server.rule = lambda body, index: refusal(400, "'max_tokens' is too large: 8")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (result,) = ask(load(server), G=1)
        assert result.error.endswith("400 'max_tokens' is too large: 8")

    def test_fewer_choices_than_asked_are_filled_up(self, server):
        server.rule = lambda body, index: completion(
            body, [f"<answer>{letter(body, i)}</answer>" for i in range(min(body.get("n", 1), 2))]
        )
        policy = load(server, one_request=True)
        with pytest.warns(UserWarning, match="fewer choices than n") as told:
            (result,) = ask(policy, G=5)
        assert [(body.get("n"), body["seed"]) for body in server.bodies] == [
            (5, 0),
            (3, 2),
            (None, 4),
        ]
        assert len(letters(result)) == 5
        assert len(told) == 1

    def test_a_server_that_is_gone_ends_the_run_before_its_questions_fail(self, server):
        policy = load(server, max_retries=1, max_concurrency=2)
        server.rule = lambda body, index: None if index < 3 else refusal(503, "no workers")
        plan, seen = Plan((SamplingParams(),)), []
        predictor = Predictor(policy.default_engine(), policy.refuses, plan, 8, seed=0)
        predictor.submit(samples(60))
        with pytest.raises(InputError, match=r"in a row got no answer \(.*503 no workers\)"):
            seen.extend(predictor.drain())
        assert [p.error for decided in seen for p in decided] == [None] * 3
        assert len(server.bodies) <= 3 + 2 * (MOST_UNAVAILABLE + 2)

    def test_few_failures_for_want_of_the_server_end_no_run(self, server):
        server.rule = lambda body, index: refusal(500, "bad") if "0?" in text_of(body) else None
        first, *others = ask(load(server, max_retries=0), 5)
        assert first.error == f"{server.url}: 500 bad"
        assert all(map(letters, others))


class TestInFlight:
    @pytest.mark.slow
    def test_it_stays_full_and_answers_the_same_one_by_one(self, server):
        def run(max_concurrency):
            policy = load(server, max_concurrency=max_concurrency)
            endpoint, shares = policy.endpoint, []
            plan = Plan((SamplingParams(),) * 3, VotingRule())
            predictor = Predictor(policy.default_engine(), policy.refuses, plan, 8, seed=0)
            attempt, lock, now = endpoint._attempt, threading.Lock(), [0, time.perf_counter()]

            async def counted(messages, fields):
                note(+1)
                try:
                    return await attempt(messages, fields)
                finally:
                    note(-1)

            def note(change):
                """Keep how long so many requests were in flight."""
                with lock:
                    time_s = time.perf_counter()
                    shares.append((now[0], time_s - now[1], len(predictor._waiting)))
                    now[:] = now[0] + change, time_s

            endpoint._attempt = counted
            found = {}
            predictor.submit(samples(60))
            for decided in predictor.drain():
                found |= {p.question.id: (p.answer, p.error) for p in decided}
            full = [(count, time_s) for count, time_s, left in shares[max_concurrency:] if left]
            mean = sum(c * t for c, t in full) / sum(t for _, t in full)
            return dict(sorted(found.items())), mean

        server.rule = lambda body, index: time.sleep(0.002 + 0.004 * (body["seed"] % 3)) or None
        many, mean = run(8)
        assert mean >= 0.9 * 8
        one, _ = run(1)
        assert one == many
        assert len(one) == 60
        assert {answer for answer, _ in one.values()} == {"A", "B"}

    def test_an_early_stop_cancels_what_is_in_flight(self, server):
        server.rule = lambda body, index: Reply(
            body=completion(body, ["<answer>A</answer>"]), hang_s=20 if body["seed"] >= 2 else 0
        )
        start_s = time.monotonic()
        (result,) = ask(load(server), G=5, stop=lambda texts, means: texts[:2].count(None) == 0)
        assert time.monotonic() - start_s < 10
        assert [c.cancelled for c in result.completions] == [False, False, True, True, True]
        assert [c.finished for c in result.completions] == [True, True, False, False, False]
        assert [c.text for c in result.completions][1:3] == ["<answer>A</answer>", ""]

    @pytest.mark.slow
    def test_a_process_that_ends_in_the_middle_waits_for_nothing(self, server):
        server.rule = lambda body, index: Reply(hang_s=60)
        script = f"""
from tests.models.served.test_engine import Request, SamplingParams, ServedPolicy, samples
policy = ServedPolicy({server.url!r}, "tiny")
policy.load()
engine = policy.default_engine()
(prompt,) = engine.encode(samples(1))
engine.add(Request(prompt, (SamplingParams(),) * 3, (0, 1, 2), 8))
engine.step()
raise SystemExit("in the middle")
"""
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, capture_output=True, text=True, timeout=50)
        assert run.stderr.splitlines()[-1] == "in the middle"
        assert "Traceback" not in run.stderr
        assert server.bodies

    def test_an_interruption_leaves_nothing_in_flight(self, server):
        server.rule = lambda body, index: Reply(hang_s=20) if index else None
        policy = load(server)
        engine = policy.default_engine()
        (prompt,) = engine.encode(samples(1))

        def stop(texts, means):
            raise KeyboardInterrupt

        engine.add(Request(prompt, (SamplingParams(),) * 5, tuple(range(5)), 8, stop))
        with pytest.raises(KeyboardInterrupt):
            list(engine._drain())
        assert engine.num_pending == 0
        assert policy.endpoint._running is None
        assert [letters(r) for r in ask(policy, 0)] == []
