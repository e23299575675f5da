"""Training an Ad-LLM: `admarket train`."""
