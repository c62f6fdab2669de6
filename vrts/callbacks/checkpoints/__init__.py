"""When a run saves, where its files go, and how signals end it."""
