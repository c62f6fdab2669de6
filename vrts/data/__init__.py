"""From annotation files and videos to batches of samples: read, sample, decode, stream."""
