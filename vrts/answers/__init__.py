"""Reading the answers of completions and grading them."""
