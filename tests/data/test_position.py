"""However often a run goes on, and with whatever ranks and batches: each question once an epoch."""

from hypothesis import given
from hypothesis import strategies as st

from vrts.data.ordering import train_batches
from vrts.data.position import Course, Layout, Position, from_state, to_state

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4))
RUNS = st.lists(st.tuples(SHAPES, st.integers(0, 9)), min_size=1, max_size=6)


def run(count, shape, updates, state, num_batches):
    """Batches of one run, as (epoch, all ranks' questions), and its state at the end.

    Lightning's counters are played as it keeps them: one count over all epochs.
    """
    layout = Layout(count, *shape, updates)
    course = Course(layout, Position(0, 0) if state is None else from_state(state, layout))
    given = []
    for done in range(course.num_batches_before, course.num_batches_before + num_batches):
        position = course.at(done, layout.num_batches)
        order = list(range(count))
        ranks = [
            train_batches(order, layout.batch_size, rank, layout.world_size, position.num_seen)
            for rank in range(layout.world_size)
        ]
        # the epoch is over where Lightning says so
        left = layout.num_batches - done % layout.num_batches
        assert len(ranks[0]) * updates - position.num_repeats == left
        given.append((position.epoch, [index for batches in ranks for index in batches[0]]))
    end = course.at(course.num_batches_before + num_batches, layout.num_batches)
    return given, to_state(end, layout)


@given(st.integers(12, 40), RUNS)
def test_any_sequence_of_resumes_sees_each_question_once(count, runs):
    state, given = None, []
    largest = {}
    for shape, num_batches in runs:
        more, state = run(count, shape, 1, state, num_batches)
        given += more
        for epoch, _ in more:
            largest[epoch] = max(largest.get(epoch, 0), shape[0] * shape[1])
    epochs = [epoch for epoch, _ in given]
    assert epochs == sorted(epochs)
    for epoch in set(epochs):
        seen = [index for e, indices in given if e == epoch for index in indices]
        assert seen == list(range(len(seen))), "in order, none twice and none left out"
        if epoch < epochs[-1]:
            # what ends an epoch is a rest that fills no batch of the run that came to it
            assert count - len(seen) < 12
    assert sorted(set(epochs)) == list(range(len(set(epochs))))


@given(st.integers(12, 40), SHAPES, st.integers(1, 3), st.lists(st.integers(0, 9), max_size=5))
def test_resumes_with_the_same_layout_are_the_run_that_was_not_interrupted(
    count, shape, updates, parts
):
    whole, end = run(count, shape, updates, None, sum(parts))
    state, given = None, []
    for num_batches in parts:
        more, state = run(count, shape, updates, state, num_batches)
        given += more
    assert given == whole
    assert state in (None, end)


@given(st.integers(12, 40), SHAPES, SHAPES, st.integers(2, 3), st.integers(1, 20))
def test_a_rollout_whose_updates_were_cut_short_is_not_made_again(count, one, two, updates, done):
    """Unless batches stay as they were: then the rest of its updates follows."""
    first, state = run(count, one, updates, None, done)
    more, _ = run(count, two, updates, state, 1)
    (epoch, seen), (after, indices) = first[-1], more[0]
    if state["num_repeats"] and one[0] * one[1] == two[0] * two[1]:
        assert (after, indices) == (epoch, seen)
    elif after == epoch:
        assert min(indices) == max(seen) + 1
    else:
        assert (after, min(indices)) == (epoch + 1, 0)


def test_a_rest_that_fills_no_batch_ends_the_epoch():
    layout = Layout(num_questions=11, batch_size=1, world_size=2)
    course = Course(layout, Position(epoch=2, num_seen=10))
    assert course.num_batches_before == 3 * layout.num_batches
    assert course.at(course.num_batches_before, layout.num_batches) == Position(3, 0)
