"""vLLM as an engine. Nothing here imports vLLM before a run needs it."""
