"""Models that an OpenAI-compatible server runs: they predict, and are not trained."""
