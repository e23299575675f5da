"""Text to token ids and back, the same behind every engine: what an LLM is asked, token by token.

It stands apart from the engines because a server's LLM is asked in token ids too: only so can its
densities be of exactly the text that another engine would have written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mechanisms.errors import BadInput
from mechanisms.llm.weights import loading, locate

_LIKE_TAG = re.compile(r"<[^<>\s]+>").fullmatch


class ChatTokenizer:
    """The tokenizer of a chat model, with its template and without its control tokens.

    Args:
        model: a name that `mechanisms.llm.weights.locate` understands.

    Attributes:
        end_token: id of the end-of-turn token.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoTokenizer

        path = locate(model)
        with loading(model):
            self.tokenizer = AutoTokenizer.from_pretrained(path)
        if self.tokenizer.eos_token_id is None or not self.tokenizer.chat_template:
            raise BadInput(
                f"model {model} has no chat template or no end-of-turn token; choose a chat model "
                "(its name often ends in -Instruct)"
            )
        self.end_token = int(self.tokenizer.eos_token_id)
        # Not only those that have a role: any special token would be encoded as one. Some, such as
        # <think> and <tool_call> of Qwen3, are not flagged; runs of white space are no control.
        added = self.tokenizer.added_tokens_decoder.values()
        control = {each.content for each in added if each.special or _LIKE_TAG(each.content)}
        control.update(self.tokenizer.all_special_tokens)
        self._control = re.compile("|".join(map(re.escape, sorted(control))))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self.tokenizer.encode(self._plain(text), add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def chat_tokens(self, prompt: str) -> list[int]:
        """Token ids of the user message in the model's chat template, up to the reply."""
        encoded = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": self._plain(prompt)}],
            add_generation_prompt=True,
            return_dict=True,
        )
        return list(encoded["input_ids"])

    def _plain(self, text: str) -> str:
        """`text` without the names of control tokens: ads and queries must not end our turn."""
        while self._control.search(text):
            text = self._control.sub("", text)
        return text
