"""Annotation files of many forms, read as questions: one reader a format, one file a benchmark.

What is part of a question in a benchmark's official prompt (subtitles, where its image is) goes
into the text of the question. The answer format ("respond with only the letter") does not: that is
the task of `vrts.prompts.PromptTemplate`, since models trained here reason before they answer.

The metadata of a benchmark's question has the fields of its row and

- ``max_frames``: the most frames that Video-RTS uses for a video of this benchmark, or None;
- ``breakdown``: categories by name, such as ``{"duration": "short"}``.
"""
