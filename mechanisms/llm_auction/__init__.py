"""LLM-Auction (arXiv 2512.10551): an LLM trained to write what an auction would choose."""
