from benchmarks.prediction import Run, measure


def test_completions_are_those_of_one_question_at_a_time_and_rows_stay_in_use():
    row = measure(Run(num_questions=12, levels=(4, 8), M=3, max_new_tokens=80, max_rows=3))
    assert row["same completions"] == row["questions"] == 12
    assert row["failed"] == 0
    assert row["rounds"] == 24, "a random model's answers never agree"
    assert row["tokens: 9th tenth"] >= 10 * row["tokens: 1st tenth"]
    assert row["share of the budget"] >= 0.8
