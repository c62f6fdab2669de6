"""However often a run is resumed, with whatever ranks and batches: each question once an epoch."""

import itertools
from concurrent.futures import Future

from hypothesis import given
from hypothesis import strategies as st

from vrts.data.progress import Position, StepPlan, TrainingProgress
from vrts.data.stream import TrainingStream
from vrts.types import Question, Sample

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 5))
"""Batch sizes and numbers of ranks."""
RUNS = st.lists(st.tuples(SHAPES, st.integers(0, 9)), min_size=1, max_size=6)


class Pool:
    """Gives samples without frames, as workers do that decode ahead."""

    num_workers = 1

    def submit(self, question, num_frames):
        future = Future()
        future.set_result(Sample(question))
        return future


def steps(plan, progress):
    """All ranks' batches, step by step, over epochs; None at the end of each."""
    questions = [Question(str(i), "?", "v.mp4") for i in range(plan.num_questions)]
    streams = [TrainingStream(each, questions, Pool(), 2) for each in progress]
    while True:
        yield from zip(*streams, strict=True)
        yield None


def run(count, shape, state, num_steps):
    """Steps of one run, each as (epoch, questions of each rank), and its state at the end."""
    plan = StepPlan(count, 3, True, *shape)
    progress = [TrainingProgress(plan, rank) for rank in range(plan.world_size)]
    for each in progress:
        if state is not None:
            each.load_state_dict(state)
    given, source = [], steps(plan, progress)
    while len(given) < num_steps:
        batches = next(source)
        if batches is None:
            continue
        assert len({batch.end for batch in batches}) == 1
        for each, batch in zip(progress, batches, strict=True):
            each.position = batch.end
        ranks = [[int(sample.question.id) for sample in batch] for batch in batches]
        given.append((batches[0].end.epoch, ranks))
    states = [each.state_dict() for each in progress]
    assert all(each == states[0] for each in states), "rank 0's is what a checkpoint has"
    return given, states[0]


def merged(ranks):
    """The questions of a step in the epoch's order: the ranks take turns."""
    turns = itertools.zip_longest(*ranks)
    return [index for turn in turns for index in turn if index is not None]


@given(st.integers(1, 40), RUNS)
def test_any_sequence_of_resumes_trains_on_each_question_once(count, runs):
    state, given = None, []
    for shape, num_steps in runs:
        more, state = run(count, shape, state, num_steps)
        given += more
        for _, ranks in more:
            sizes = [len(ids) for ids in ranks]
            assert sizes == sorted(sizes, reverse=True)
            assert sizes[0] - sizes[-1] <= 1, "what is left is divided evenly"
            assert 0 < sizes[0] <= shape[0]
    epochs = [epoch for epoch, _ in given]
    assert epochs == sorted(epochs)
    for epoch in set(epochs):
        whole = StepPlan(count, 3, True, 1, 1).shares(Position(epoch, 0), 0)
        order = [index for share in whole for index in share.indices]
        trained = [merged(ranks) for each, ranks in given if each == epoch]
        trained = [index for step in trained for index in step]
        assert trained == order[: len(trained)], "in order, none twice and none left out"
        assert epoch == epochs[-1] or len(trained) == count
    assert sorted(set(epochs)) == list(range(len(set(epochs))))


@given(st.integers(1, 40), SHAPES, st.lists(st.integers(0, 9), max_size=5))
def test_resumes_with_the_same_plan_are_the_run_that_was_not_interrupted(count, shape, parts):
    whole, end = run(count, shape, None, sum(parts))
    state, given = None, []
    for num_steps in parts:
        more, state = run(count, shape, state, num_steps)
        given += more
    assert given == whole
    assert state in (None, end)


@given(st.integers(1, 40), SHAPES, st.integers(1, 40))
def test_two_ranks_train_on_what_one_does(count, shape, num_steps):
    """The same questions in each step, whichever way they are divided."""
    batch_size, world_size = shape
    many, _ = run(count, shape, None, num_steps)
    one, _ = run(count, (batch_size * world_size, 1), None, num_steps)
    assert [(epoch, merged(ranks)) for epoch, ranks in many] == [
        (epoch, ranks[0]) for epoch, ranks in one
    ]


@given(st.integers(1, 40), SHAPES, st.integers(0, 40))
def test_the_length_is_more_than_there_is(count, shape, num_seen):
    """So that Lightning takes no batch for the last one."""
    plan = StepPlan(count, 0, False, *shape)
    progress = TrainingProgress(plan)
    progress.position = Position(0, min(num_seen, count))
    assert progress.num_batches() == plan.num_steps() + 1
    assert len(progress.remaining()) == plan.num_steps(num_seen) < progress.num_batches()
