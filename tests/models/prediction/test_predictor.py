"""Questions of all levels in flight together: what is decided is what the plain rule decides."""

from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from itertools import chain
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.callbacks.runs import build_model, make_policy
from tests.models.scripted_engine import ScriptedEngine
from vrts.models.engines.native import NativeEngine
from vrts.models.engines.sampling import row_seed
from vrts.models.prediction import predictor as module
from vrts.models.prediction.predictor import Plan, Predictor
from vrts.types import Clip, Prediction, Question, Sample, SamplingParams
from vrts.voting import LogProbVote, MajorityVote, VotingRule, decide, fail, make_round

LEVELS, SEED, L = (4, 8, 16), 3, 100
OPTIONS = ("red", "green", "blue")


@dataclass(frozen=True)
class World:
    """Videos and what a model says of them, all from one seed."""

    seed: int
    num_questions: int
    M: int

    def random(self, *parts: object) -> Random:
        return Random(repr((self.seed, *parts)))

    @property
    def too_large(self) -> int:
        """Number of frames that no engine has room for, perhaps of the first level already."""
        return (16, 10**6, 4, 10**6, 8, 10**6)[self.seed % 6]

    @property
    def questions(self) -> list[Question]:
        return [Question(f"q{i}", f"What colour is {i}?", f"{i}.mp4", options=OPTIONS, gold="A")
                for i in range(self.num_questions)]  # fmt: skip

    def text(self, id: str, num_frames: int, m: int) -> str:
        letter = self.random(id, num_frames, m).choices("ABC-", [6, 2, 1, 1])[0]
        return "I see nothing" if letter == "-" else f"<answer>{letter}</answer>"

    def length(self, m: int, seeds: tuple[int, ...]) -> int:
        """From 1 to 10 times as long."""
        return 2 + seeds[m] % 19

    def error(self, id: str, num_frames: int) -> str | None:
        return (
            f"{id} at {num_frames} is cursed"
            if self.random(id, num_frames).random() < 0.03
            else None
        )

    def sample(self, question: Question, num_frames: int) -> Sample:
        """Some videos are short, some seem to be longer than the sampler finds, some fail."""
        random = self.random(question.id)
        found, hides = random.choice([4, 6, 12, 16, 16, 16]), random.random() < 0.3
        if random.random() < 0.2 and num_frames >= random.choice(LEVELS):
            return Sample(question, error=f"frame {num_frames - 1} is damaged")
        T = min(num_frames, found)
        frames = torch.zeros(T, 3, 28, 28, dtype=torch.uint8)
        return Sample(question, Clip(frames, tuple(range(T)), 8.0, 100 if hides else found))

    def refuses(self, sample: Sample, max_new_tokens: int) -> str | None:
        assert max_new_tokens == L
        T = sample.clip.num_frames
        return "too long" if self.random(sample.question.id, T, "r").random() < 0.08 else None

    def engine(self, num_rows: int) -> ScriptedEngine:
        return ScriptedEngine(self.text, num_rows, self.length, self.error, self.too_large)

    def plain(self, question: Question, rule: VotingRule) -> Prediction:
        """What is decided for one question at a time, every completion to its end."""
        rounds = []
        for level in LEVELS:
            sample = self.sample(question, level)
            if sample.error is not None:
                return fail(question, sample.error, rounds)
            if (reason := self.refuses(sample, L)) is not None:
                if rounds:
                    break  # the densest level that the model takes decides
                return fail(question, reason, rounds)
            T = sample.clip.num_frames
            if rounds and rounds[-1].num_frames >= T:
                break
            if self.too_large <= T:
                if rounds:
                    break  # the densest level that the engine has room for decides
                return fail(question, f"{T} frames do not fit even alone", rounds)
            if (error := self.error(question.id, T)) is not None:
                return fail(question, error, rounds)
            seeds = [row_seed(SEED, question.id, T, m) for m in range(self.M)]
            rounds.append(make_round(
                [self.text(question.id, T, m) for m in range(self.M)], question, T,
                times_s=[i / 8 for i in range(T)],
                num_tokens=[self.length(m, seeds) for m in range(self.M)],
                mean_logprobs=[round(-(seed % 997) / 997, 4) for seed in seeds],
                cancelled=[False] * self.M,
            ))  # fmt: skip
            is_end = level > T or sample.clip.num_source_frames == T
            if is_end or rule.is_settled(rounds[-1]):
                break
        return decide(question, rounds, rule)


class Frames:
    """Frames of denser levels, which come when chance or a waiting predictor says so."""

    def __init__(self, world: World, random: Random) -> None:
        self.world, self.random = world, random
        self.log: list[tuple[str, int, bool]] = []
        self.open: list[tuple[Future[Sample], Question, int]] = []

    def __call__(self, question: Question, num_frames: int, is_needed: bool) -> Future[Sample]:
        self.log.append((question.id, num_frames, is_needed))
        self.open.append((Future(), question, num_frames))
        future = self.open[-1][0]
        self.come(self.random.randrange(3))
        return future

    def come(self, count: int) -> None:
        """Let some come, whichever."""
        self.open = [entry for entry in self.open if not entry[0].cancelled()]
        for _ in range(min(count, len(self.open))):
            future, question, num_frames = self.open.pop(self.random.randrange(len(self.open)))
            future.set_result(self.world.sample(question, num_frames))

    def wait(self, futures, return_when) -> None:
        assert futures, "waits for nothing"
        while not any(future.done() for future in futures):
            self.come(1)


def run(world, engine, rule, random, batch_size=3, ahead=True, reuse=False, questions=None):
    """Predict everything in batches; predictions in order of decision, and the source of frames."""
    frames = Frames(world, random)
    plan = Plan((SamplingParams(),) * world.M, rule, LEVELS, frames, ahead, reuse)
    predictor = Predictor(engine, world.refuses, plan, L, SEED)
    asked = world.questions if questions is None else questions
    decided: list[Prediction] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "wait", frames.wait)
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            predictor.submit([world.sample(question, LEVELS[0]) for question in batch])
            decided += [p for some in predictor.run_until_room() for p in some]
            assert engine.has_room() or not engine.num_pending
        decided += [p for some in predictor.drain() for p in some]
    assert engine.num_pending == 0
    assert sorted(p.question.id for p in decided) == sorted(q.id for q in asked)
    return decided, frames


def worlds() -> st.SearchStrategy[World]:
    return st.builds(World, st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 5))


def rules(early_stop: bool) -> st.SearchStrategy[VotingRule]:
    return st.builds(
        VotingRule,
        st.sampled_from([MajorityVote(), LogProbVote()]),
        st.sampled_from([None, 1]),
        st.just(early_stop),
    )


@given(worlds(), rules(early_stop=False), st.integers(1, 20), st.integers(1, 5), st.randoms())
@settings(max_examples=100, deadline=None)
def test_decisions_are_those_of_one_question_at_a_time(world, rule, num_rows, batch_size, random):
    """Round by round, whatever is in flight and whenever frames come."""
    decided, _ = run(world, world.engine(num_rows), rule, random, batch_size)
    for prediction in decided:
        want = world.plain(prediction.question, rule)
        # that a video has no more frames is known beforehand, or found out
        rounds = tuple(replace(r, is_last=False) for r in prediction.rounds)
        assert replace(prediction, rounds=rounds) == want
        if prediction.error is None:
            assert prediction.clip.num_frames == prediction.num_frames
        else:
            assert prediction.clip is None


@pytest.mark.slow
@given(worlds(), rules(early_stop=True), st.integers(1, 20), st.integers(1, 5), st.randoms())
@settings(max_examples=200, deadline=None)
def test_an_early_stop_changes_no_decision(world, rule, num_rows, batch_size, random):
    """Cancelled completions have no answer; the others are the same."""
    decided, _ = run(world, world.engine(num_rows), rule, random, batch_size)
    for prediction in decided:
        want = world.plain(prediction.question, rule)
        assert replace(prediction, rounds=()) == replace(want, rounds=())
        assert [r.num_frames for r in prediction.rounds] == [r.num_frames for r in want.rounds]
        for some, every in zip(prediction.rounds, want.rounds, strict=True):
            pairs = zip(some.cancelled, every.answers, strict=True)
            kept = [None if gone else answer for gone, answer in pairs]
            assert list(some.answers) == kept
            assert (some.agreement == 1) == (every.agreement == 1)


@given(worlds(), st.randoms(), st.booleans(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_neither_order_nor_features_nor_decoding_ahead_matter(world, random, ahead, reuse):
    rule, engine = VotingRule(), world.engine(8)
    first, _ = run(world, world.engine(8), rule, Random(0), batch_size=4)
    shuffled = list(world.questions)
    random.shuffle(shuffled)
    again, frames = run(world, engine, rule, random, 1, ahead, reuse, shuffled)
    assert {p.question.id: p for p in first} == {p.question.id: p for p in again}
    assert ahead or all(is_needed for _, _, is_needed in frames.log)
    known = [(T, before) for _, T, before in engine.encoded if before is not None]
    assert all(before <= T for T, before in known)
    # but for levels that were asked again, or encoded and too large
    assert bool(known) == (reuse and any(len(p.rounds) > 1 for p in again)) or any(
        before == T or world.too_large <= T for T, before in known
    )


@pytest.mark.parametrize("batch_size", [1, 8])
def test_rows_stay_in_flight(batch_size):
    """200 questions whose completions differ in length by 10x: at least 0.8 of the budget."""
    world, num_rows = World(1, 200, 5), 40
    engine = world.engine(num_rows)
    decided, _ = run(world, engine, VotingRule(), Random(0), batch_size)
    assert {len(p.rounds) for p in decided} >= {1, 2}
    assert max(engine.in_flight) <= num_rows
    assert sum(engine.in_flight) / len(engine.in_flight) >= 0.8 * num_rows


@pytest.mark.slow
def test_a_real_model_s_rows_stay_in_flight_and_answer_as_one_question_at_a_time(tmp_path):
    """200 questions whose completions differ in length by 10x."""
    policy = make_policy(build_model(tmp_path / "model"))
    policy.load()
    policy.eval()

    def clip(question: Question, num_frames: int) -> Sample:
        generator = torch.Generator().manual_seed(int(question.id[1:]) + num_frames)
        frames = torch.randint(256, (num_frames, 3, 28, 28), generator=generator).byte()
        return Sample(question, Clip(frames, tuple(range(num_frames)), 8.0, 100))

    def frames(question: Question, num_frames: int, is_needed: bool) -> Future[Sample]:
        future: Future[Sample] = Future()
        future.set_result(clip(question, num_frames))
        return future

    asked = [Question(f"q{i}", f"What {'very ' * (i % 4)}{i}?", f"{i}.mp4") for i in range(200)]
    found = []
    for max_rows, size, some in ((32, 1, asked), (4, 200, asked[::8])):
        engine = NativeEngine(max_rows=max_rows)
        engine.attach(policy, torch.device("cpu"), None, will_shard=False)
        engine.sync(policy)
        plan = Plan((SamplingParams(),) * 4, VotingRule(early_stop=False), (2, 4), frames)
        predictor = Predictor(engine, policy.refuses, plan, 64, SEED)
        decided = []
        for i in range(0, len(some), size):
            predictor.submit([clip(question, 2) for question in some[i : i + size]])
            decided += chain.from_iterable(predictor.run_until_room())
        decided += chain.from_iterable(predictor.drain())
        found.append({p.question.id: p for p in decided})
        if max_rows == 32:
            assert engine.count.rows / engine.count.steps >= 0.8 * max_rows
    lengths = [n for p in found[0].values() for r in p.rounds for n in r.num_tokens]
    assert sorted(lengths)[-20] >= 10 * sorted(lengths)[20], "lengths hardly differ"
    assert {len(p.rounds) for p in found[0].values()} == {2}
    for id, want in found[1].items():
        for one, other in zip(found[0][id].rounds, want.rounds, strict=True):
            # sums of a few rows and of many are rounded differently, in the last bits
            assert one.mean_logprobs == pytest.approx(other.mean_logprobs, abs=1.5e-4)
            assert replace(one, mean_logprobs=()) == replace(other, mean_logprobs=())
        assert found[0][id].answer == want.answer


def scripted(script, num_rows=100, length=lambda m, seeds: 1):
    """An engine that answers by question and number of frames; "AAA" to others."""
    answers = lambda id, T: script.get(id, {}).get(T, "AAA")  # noqa: E731
    return ScriptedEngine(
        lambda id, T, m: f"<answer>{answers(id, T)[m]}</answer>", num_rows, length
    )


def sample(id, num_frames, num_source_frames=100):
    frames = torch.zeros(num_frames, 3, 28, 28, dtype=torch.uint8)
    question = Question(id, "?", f"{id}.mp4", options=OPTIONS)
    return Sample(question, Clip(frames, tuple(range(num_frames)), 8.0, num_source_frames))


class Asked:
    """Frames that come when the test says so."""

    def __init__(self) -> None:
        self.futures: list[Future[Sample]] = []
        self.log: list[tuple[str, int, bool]] = []

    def __call__(self, question, num_frames, is_needed):
        self.log.append((question.id, num_frames, is_needed))
        self.futures.append(Future())
        return self.futures[-1]


def predictor(engine, frames, ahead=True, reuse=False, rule=None):
    plan = Plan((SamplingParams(),) * 3, rule or VotingRule(), LEVELS, frames, ahead, reuse)
    return Predictor(engine, lambda sample, max_new_tokens: None, plan, L, SEED)


def test_a_question_joins_its_next_level_while_others_are_decoded():
    """Of two that are asked together, one is at its next level before the other one ends."""
    engine = scripted({"a": {4: "ABC"}, "b": {4: "BBB"}})
    engine.length = lambda m, seeds: 30 if seeds[0] == row_seed(SEED, "b", 4, 0) else 1
    frames = Asked()
    asked = predictor(engine, frames)
    asked.submit([sample("a", 4), sample("b", 4)])
    assert list(asked.run_until_room()) == []
    assert frames.log == [("a", 8, False), ("b", 8, False)]
    frames.futures[0].set_result(sample("a", 8))
    first, second = asked.drain()
    assert [p.question.id for p in first + second] == ["a", "b"]
    assert frames.log == [("a", 8, False), ("b", 8, False), ("a", 16, False)]
    assert len(engine.in_flight) == 30, "a's second round took no step of its own"
    assert [future.cancelled() for future in frames.futures] == [False, True, True]


def test_needed_frames_are_requested_again_before_those_ahead_are_cancelled():
    frames = Asked()
    asked = predictor(scripted({"a": {4: "ABC"}}), frames)
    asked.submit([sample("a", 4)])
    waited = []

    def wait(futures, return_when):
        waited.append([future.cancelled() for future in frames.futures])
        frames.futures[1].set_result(sample("a", 8))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "wait", wait)
        ((prediction,),) = asked.drain()
    assert prediction.num_frames == 8
    assert frames.log == [("a", 8, False), ("a", 8, True), ("a", 16, False)]
    assert waited == [[True, False]]


def test_frames_ahead_are_bounded(monkeypatch):
    """Those of one question always, of others within the bound; what is decided makes room."""
    clip_bytes = 8 * 3 * 28 * 28
    monkeypatch.setattr(module, "AHEAD_BYTES", 2 * clip_bytes)
    frames = Asked()
    asked = predictor(scripted({}), frames)
    asked.submit([sample(id, 4) for id in "abc"])
    list(asked.run_until_room())
    assert [id for id, _, _ in frames.log] == ["a", "b"]
    list(asked.drain())
    assert all(future.cancelled() for future in frames.futures)
    asked.submit([sample("d", 4), sample("e", 4, num_source_frames=4)])
    list(asked.drain())
    assert [id for id, _, _ in frames.log] == ["a", "b", "d"], "e has no more frames"
    monkeypatch.setattr(module, "AHEAD_BYTES", 1)
    asked.submit([sample("f", 4), sample("g", 4)])
    list(asked.drain())
    assert [id for id, _, _ in frames.log] == ["a", "b", "d", "f"]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_failure_of_decoding_is_raised_where_it_is_needed_only(ahead):
    frames = Asked()
    asked = predictor(scripted({"b": {4: "ABC"}}), frames, ahead)
    asked.submit([sample("a", 4)])
    list(asked.run_until_room())
    for future in frames.futures:
        future.set_exception(OSError("no worker"))
    ((prediction,),) = asked.drain()
    assert prediction.answer == "A"
    asked.submit([sample("b", 4)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "wait", lambda *_, **__: frames.futures[-1].cancel())
        with pytest.raises(CancelledError):
            list(asked.drain())


def test_features_are_known_from_the_level_before():
    engine = scripted({"a": {4: "ABC", 8: "ABC"}, "b": {4: "ABC"}})
    done = lambda q, T, _: (f := Future(), f.set_result(sample(q.id, T)))[0]  # noqa: E731
    asked = predictor(engine, done, reuse=True)
    asked.submit([sample("a", 4), sample("b", 4)])
    list(asked.drain())
    assert sorted(engine.encoded, key=str) == [
        ("a", 16, 8), ("a", 4, None), ("a", 8, 4), ("b", 4, None), ("b", 8, 4),
    ]  # fmt: skip


def test_log_probs_that_are_no_numbers_are_a_failure():
    """Its rounds before are kept."""
    engine = scripted({"a": {4: "ABC", 8: "ABC"}})
    engine._mean_logprob = lambda rows, m: (
        float("nan") if rows.request.prompt.num_frames == 8 else -1.0
    )
    done = lambda q, T, _: (f := Future(), f.set_result(sample(q.id, T)))[0]  # noqa: E731
    asked = predictor(engine, done)
    asked.submit([sample("a", 4)])
    ((prediction,),) = asked.drain()
    assert "at 8 frames the model's log-probs are not finite" in prediction.error
    assert [r.num_frames for r in prediction.rounds] == [4]
