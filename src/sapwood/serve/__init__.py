"""A state over HTTP: ask it, teach it, look at it. Needs the extra ``serve``."""
