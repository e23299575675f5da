"""Runs inside vLLM's workers: the served LLM *is* the LLM at the sampling temperature.

vLLM tempers what it samples from, but scores prompts at temperature 1, whatever its options say.
So the logits are divided where the model makes them, and every request runs at temperature 1. The
hidden states do not change, so neither do cached prompts.
"""

from __future__ import annotations

from typing import Any


class Tempered:
    """vLLM adds this to its worker class (`worker_extension_cls`)."""

    def temper(self, temperature: float) -> int:
        """Divide all logits by `temperature` from now on; returns how many heads do."""
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        def divide(module: Any, _: Any, logits: Any) -> Any:
            # In fp32: rounding to bf16 once more would cost as much as the LLM's own rounding.
            return logits if logits is None else logits.float().div_(module.temperature)

        # With adapters a head is wrapped, and the wrapper is what is called.
        heads = [
            module
            for module in self.get_model().modules()
            if isinstance(getattr(module, "base_layer", module), LogitsProcessor)
        ]
        for head in heads:
            if not hasattr(head, "temperature"):
                head.register_forward_hook(divide)
            head.temperature = temperature
        return len(heads)
