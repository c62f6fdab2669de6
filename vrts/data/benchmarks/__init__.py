"""Readers for the original annotation files of published benchmarks, and for one's own tables.

What belongs to a question in a benchmark's official prompt (subtitles, where its image is) goes
into the text of the question. How to answer ("respond with only the letter") does not: that is
`vrts.prompts.PromptTemplate`'s part, since models trained here reason before they answer.

Each question has in its metadata the other fields of its row and

- ``max_frames``: most frames that Video-RTS gives a video of this benchmark, or None;
- ``breakdown``: category by name, such as ``{"duration": "short"}``, to group results by.
"""
