"""Sentence embeddings by all-MiniLM-L6-v2 (mean pooling, unit length)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mechanisms.llm.weights import loading, locate


class TextEncoder:
    """Embeds texts; cosine similarity is the dot product of two embeddings."""

    def __init__(self, model: str = "all-minilm-l6-v2", max_tokens: int = 128) -> None:
        import torch  # here, as commands that embed nothing should not wait for it
        from transformers import AutoModel, AutoTokenizer

        path = locate(model)
        self.model = model
        self.max_tokens = max_tokens
        with loading(model):
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.network = AutoModel.from_pretrained(path, dtype=torch.float32).eval()

    def embed(self, texts: Sequence[str], batch: int = 64) -> NDArray[np.float64]:
        """(len(texts), d) embeddings of unit length; equal texts are embedded once."""
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        rows: dict[str, NDArray[np.float64]] = {}
        for start in range(0, len(unique), batch):
            part = unique[start : start + batch]
            rows.update(zip(part, self._embedded(part), strict=True))
        return np.stack([rows[text] for text in texts]) if rows else np.zeros((0, 384))

    def _embedded(self, texts: list[str]) -> NDArray[np.float64]:
        """(len(texts), d) embeddings of a batch."""
        import torch

        with torch.inference_mode():
            encoded = self.tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
            states = self.network(**encoded).last_hidden_state
            mask = encoded["attention_mask"][..., None].to(states.dtype)
            pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
            return pooled.double().numpy()
