"""Which engine to use, by name."""

from __future__ import annotations

from pathlib import Path

from mechanisms.errors import BadInput
from mechanisms.llm.base import Engine

ENGINES = ("transformers", "vllm", "openai")


def make_engine(
    name: str = "transformers",
    *,
    model: str,
    dtype: str = "bf16",
    server: str | None = None,
    temperature: float | None = None,
    adapter: Path | None = None,
) -> Engine:
    """The engine `name`, ready to sample and score.

    Args:
        name: `transformers` (embedded), `vllm` (embedded), or `openai` (a server's).
        model: a name that `mechanisms.llm.weights.locate` understands.
        dtype: `bf16` or `fp32`; a server has its own.
        server: address of the server, for `openai`.
        temperature: at which the server's LLM is served, if not as its directory says (see
            `mechanisms.llm.tempered`) or at 1; the other engines serve any.
        adapter: folder of a LoRA adapter to serve the model with; not for `openai`.
    """
    if name not in ENGINES:
        raise BadInput(f"engine {name!r} is unknown; choose from {', '.join(ENGINES)}")
    if (server is None) == (name == "openai"):
        raise BadInput(
            "engine openai needs the address of its server, like http://127.0.0.1:8000"
            if server is None
            else f"engine {name} asks no server; choose engine openai, or leave the server out"
        )
    if name == "openai" and adapter:
        raise BadInput(
            f"engine openai cannot load adapter {adapter}; choose engine transformers or vllm"
        )
    # Imported late: each takes seconds, and vLLM is not installed everywhere.
    if name == "openai":
        from mechanisms.llm.openai_engine import OpenAIEngine

        return OpenAIEngine(str(server), model, served_temperature=temperature)
    if name == "vllm":
        from mechanisms.llm.vllm_engine import VLLMEngine

        return VLLMEngine(model, dtype, adapter=adapter)
    from mechanisms.llm.transformers_engine import TransformersEngine

    return TransformersEngine(model, dtype=dtype, adapter=adapter)
