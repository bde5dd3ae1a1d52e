"""Pictures in: sources, decoding, views, splits and benchmarks. Import from the modules; this file loads nothing."""
