"""LLM engines behind one small interface: `generate` and `score`."""
