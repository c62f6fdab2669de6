"""Weighted votes, consensus, and the early stop, which must never change what is decided."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrts.types import InputError, Question, Round
from vrts.voting import (
    LogProbVote,
    MajorityVote,
    Vote,
    VoteError,
    VotingRule,
    agreement,
    decide,
    elect,
    error_context,
    majority,
)

ANSWER = st.sampled_from(["A", "B", "C", None])
# few values, so that ties come up, and logs of halves, whose weights add up exactly
LOGPROB = st.sampled_from([0.0, math.log(0.5), math.log(0.25), -0.3, -2.0])


def round_of(answers, logprobs=()) -> Round:
    texts = tuple("" for _ in answers)
    return Round(4, texts, tuple(answers), agreement(answers), mean_logprobs=tuple(logprobs))


def outcome(rule: VotingRule, answers, logprobs, is_last: bool):
    """The result of a round: None if the question continues, else the answer and unanimity."""
    made = round_of(answers, logprobs)
    if not is_last and not rule.is_settled(made):
        return None
    return rule.answer(made), made.agreement == 1


@st.composite
def rounds(draw, max_size: int = 7):
    M = draw(st.integers(1, max_size))
    answers = draw(st.lists(ANSWER, min_size=M, max_size=M))
    logprobs = draw(st.lists(LOGPROB, min_size=M, max_size=M))
    order = draw(st.permutations(range(M)))
    consensus = draw(st.one_of(st.none(), st.integers(1, M)))
    vote = draw(st.sampled_from([MajorityVote(), LogProbVote()]))
    return answers, logprobs, order, VotingRule(vote, consensus), draw(st.booleans())


@settings(deadline=None)
@given(rounds())
def test_an_early_stop_decides_what_all_completions_decide(drawn):
    """In every order of finishing, and wherever the rule allows a stop."""
    answers, logprobs, order, rule, is_last = drawn
    want = outcome(rule, answers, logprobs, is_last)
    for count in range(len(order)):
        finished = [m in order[:count] for m in range(len(order))]
        if rule.may_stop(answers, logprobs, finished, is_last=is_last):
            left = [a if f else None for a, f in zip(answers, finished, strict=True)]
            assert outcome(rule, left, logprobs, is_last) == want


@pytest.mark.slow
@settings(deadline=None)
@given(rounds(max_size=4))
def test_a_majority_stops_as_soon_as_nothing_else_can_come(drawn):
    """The rule is not only safe: where it says no, some answers would change the outcome."""
    answers, _, order, rule, is_last = drawn
    rule = VotingRule(MajorityVote(), rule.consensus)
    for count in range(len(order)):
        finished = [m in order[:count] for m in range(len(order))]
        open_places = [m for m, f in enumerate(finished) if not f]
        outcomes = set()
        for more in itertools.product(["A", "B", "C", "new", None], repeat=len(open_places)):
            filled = list(answers)
            for place, answer in zip(open_places, more, strict=True):
                filled[place] = answer
            outcomes.add(outcome(rule, filled, (), is_last))
        assert rule.may_stop(answers, (), finished, is_last=is_last) == (len(outcomes) == 1)


def may_stop(answers: str, *, is_last: bool, rule: VotingRule | None = None) -> bool:
    """``?`` for a completion that is not finished, ``-`` for one without an answer."""
    known = [None if a in "-?" else a for a in answers]
    finished = [a != "?" for a in answers]
    return (rule or VotingRule()).may_stop(known, [-0.5] * len(known), finished, is_last=is_last)


@pytest.mark.parametrize(
    ("answers", "before_the_last", "at_the_last"),
    [
        ("?????", False, False),
        ("AAAA?", False, False),  # unanimity is open
        ("AAA??", False, False),  # as it is here, though the majority is not
        ("AB???", True, False),  # no unanimity: continues
        ("-????", True, False),
        ("--???", True, False),
        ("AAB??", True, False),  # two more B would win
        ("AAAB?", True, True),
        ("AA-?B", True, True),  # a tie at most, and A came first
        ("BA?AB", True, False),  # either may still win
        ("?BBA-", True, False),  # an A at the first place ties and comes first
        ("B?BA-", True, True),  # here it would come too late
    ],
)
def test_when_a_round_stops(answers, before_the_last, at_the_last):
    assert may_stop(answers, is_last=False) is before_the_last
    assert may_stop(answers, is_last=True) is at_the_last


def test_a_consensus_of_fewer_stops_when_it_is_there_or_out_of_reach():
    rule = VotingRule(consensus=3)
    assert not may_stop("AAA??", is_last=False, rule=rule), "it may still be unanimous"
    assert may_stop("AAAB?", is_last=False, rule=rule)
    assert may_stop("ABC--", is_last=False, rule=rule)
    assert not may_stop("AAB??", is_last=False, rule=rule)
    assert may_stop("AABB-", is_last=False, rule=rule)


def test_votes_by_log_prob():
    answers, logprobs = ["A", "A", "B"], [-2.0, -2.0, -0.1]
    rule = VotingRule(LogProbVote())
    assert rule.answer(round_of(answers, logprobs)) == "B"
    assert majority(answers) == "A"
    # what is not finished weighs at most 1: it may make up for 0.5, but not for more than 1
    logs = [math.log(0.9), math.log(0.8), math.log(0.2), 0.0]
    finished = [True, True, True, False]
    assert rule.may_stop(["A", "A", "B", None], logs, finished, is_last=True)
    logs[1] = math.log(0.1)
    assert not rule.may_stop(["A", "A", "B", None], logs, finished, is_last=True)


def test_weights_add_up_exactly():
    assert elect(["A", "B", "B", "B"], [0.3, 0.1, 0.1, 0.1]) == "B"  # three times 0.1 is more
    assert elect(["A", "B", "B"], [0.5, 0.25, 0.25]) == "A"
    assert elect([None, None], [0.0, 0.0]) is None


@pytest.mark.parametrize("is_last", [False, True])
def test_a_flag_turns_it_off(is_last):
    assert not may_stop("AAAB?", is_last=is_last, rule=VotingRule(early_stop=False))


class Loud(Vote):
    def weight(self, mean_logprob: float) -> float:
        return 2.0


def test_bad_rules():
    with pytest.raises(InputError, match="consensus is 0"):
        VotingRule(consensus=0)
    with pytest.raises(VoteError, match=r"Loud gives a vote the weight 2\.0"):
        VotingRule(Loud()).answer(round_of("AB"))
    with pytest.raises(VoteError, match=r"LogProbVote .* nan.* lack mean log-probs.* to null"):
        VotingRule(LogProbVote()).answer(round_of("AB"))
    assert VotingRule().answer(round_of("BAB")) == "B"


@pytest.mark.parametrize("weight", [None, "1", math.nan, math.inf, -0.1, 1.1, 1j, [0.5]])
def test_weights_that_are_none_are_named(weight):
    class Odd(Vote):
        def weight(self, mean_logprob):
            return weight

    rule, made = VotingRule(Odd()), round_of(["A", "B", None], [-0.5, -0.7, -0.9])
    message = r"question q7: Odd gives a vote the weight .* -0\.5, .* float from 0 to 1; .*to null"
    with pytest.raises(VoteError, match=message) as caught:
        decide(QUESTION, [made], rule)
    assert caught.value.__cause__ is None
    with pytest.raises(VoteError, match=message), error_context(QUESTION):
        rule.may_stop(["A", "B", None], made.mean_logprobs, [True, True, False], is_last=True)


QUESTION = Question("q7", "Which?", "v.mp4", options=("a", "b", "c"))


class Raising(Vote):
    def weight(self, mean_logprob):
        raise KeyError("certainty")


def test_a_vote_that_raises_is_named_with_its_question():
    message = r"question q7: Raising raised KeyError .*-0\.5: 'certainty'; correct it, or .* null"
    with pytest.raises(VoteError, match=message) as caught:
        decide(QUESTION, [round_of("AB", [-0.5, -0.7])], VotingRule(Raising()))
    assert isinstance(caught.value.__cause__, KeyError), "its traceback has the place"
    assert decide(QUESTION, [round_of([None], [-0.5])], VotingRule(Raising())).answer is None


def test_log_probs_that_are_no_numbers_stop_nothing():
    """Such a round fails by name, with an early stop too, whatever the vote makes of them."""
    nan = [-0.5, math.nan, -0.5]
    for vote in (MajorityVote(), LogProbVote()):
        rule = VotingRule(vote)
        assert not rule.may_stop(["A", "B", None], nan, [True, True, False], is_last=False)
        assert rule.may_stop(["A", None, "B"], nan, [True, False, True], is_last=False)


LEVELS = 3


@st.composite
def tables(draw):
    """Answers, log-probs and an order of arrival for each level of a question."""
    M = draw(st.integers(1, 6))
    silent = draw(st.lists(st.booleans(), min_size=LEVELS, max_size=LEVELS))
    levels = [
        (
            [None] * M if silent[level] else draw(st.lists(ANSWER, min_size=M, max_size=M)),
            draw(st.lists(LOGPROB, min_size=M, max_size=M)),
            draw(st.permutations(range(M))),
        )
        for level in range(LEVELS)
    ]
    vote = draw(st.sampled_from([MajorityVote(), LogProbVote()]))
    return levels, vote, draw(st.one_of(st.none(), st.integers(1, M)))


def ask_through(levels, rule):
    """What a question comes to when it is asked level by level, completions ending one by one."""
    for level, (answers, logprobs, order) in enumerate(levels):
        is_last = level + 1 == len(levels)
        finished = [False] * len(answers)
        for m in order:
            finished[m] = True
            if not all(finished) and rule.may_stop(answers, logprobs, finished, is_last=is_last):
                break
        left = [a if f else None for a, f in zip(answers, finished, strict=True)]
        made = round_of(left, logprobs)
        if is_last or rule.is_settled(made):
            return level, rule.answer(made), made.agreement == 1
    raise AssertionError


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(tables())
def test_a_question_comes_to_the_same_with_an_early_stop(drawn):
    """Level by level, also where no completion of a level has an answer."""
    levels, vote, consensus = drawn
    early, full = (VotingRule(vote, consensus, early_stop=stop) for stop in (True, False))
    assert ask_through(levels, early) == ask_through(levels, full)
