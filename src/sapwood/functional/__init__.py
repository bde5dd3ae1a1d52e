"""Pure tensor mathematics: losses, low-rank algebra, statistics and metrics; no state, no files."""
