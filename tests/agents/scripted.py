"""An LLM that says what a test tells it to, and replies to be judged by it."""

import json
import re

import numpy as np

from agents.judge import JudgeSettings
from mechanisms.llm.base import Sample
from mechanisms.mentions import render
from mechanisms.recording import Features, Request
from tests.tiny_llm import ADS

BED, TEA, OAK = (render(ad) for ad in ADS)
TEXTS = (f"Try {TEA} and {BED}.", "Sleep well.", f"Buy {OAK}.")
SCORE = JudgeSettings("score")


def request(query="How do I sleep?", user="A user.", ads=ADS):
    return Request("Query-1", query, "User-1", user, ads, range(len(ads)))


def features(texts, ads=ADS):
    """Features of replies to one request: what a judge reads of them."""
    shown = np.array([[render(ad) in text for ad in ads] for text in texts])[None]
    B, M, n = shown.shape
    zero = np.zeros((B, M))
    return Features(
        text=list(texts),
        exposure=shown,
        nativeness=np.zeros((B, M, n)),
        place=np.zeros((B, M, n)),
        sentences=zero,
        fluency=zero,
        complete=zero > 0,
        malformed=zero,
    )


class Scripted:
    """An LLM that writes what `say(prompt, k)` gives, and thinks `yes(prompt)` (a log-odds).

    It reads and writes character by character.
    """

    model = "scripted"

    def __init__(self, say=None, yes=None):
        self.say, self.yes, self.prompts = say, yes, []

    def encode(self, text):
        return [ord(character) for character in text]

    def decode(self, tokens):
        return "".join(map(chr, tokens))

    def generate(self, prompts, n, *, max_new_tokens, temperature, seed, keys):
        assert len(set(prompts)) == len(prompts) == len(keys)
        self.prompts += prompts
        return [[self._sample(self.say(p, k)) for k in range(n)] for p in prompts]

    def _sample(self, text):
        tokens = np.array(self.encode(text), dtype=np.int64)
        return Sample(tokens, np.zeros(len(tokens)), np.zeros(len(tokens), dtype=bool), True)

    def score(self, prompts, replies, *, temperature):
        assert len(set(prompts)) == len(prompts)
        assert [[self.decode(word) for word in row] for row in replies] == (
            [["Yes", "No"]] * len(prompts)
        )
        self.prompts += prompts
        return [self._odds(self.yes(prompt)) for prompt in prompts]

    def _odds(self, z):
        no = np.log(0.5 / (1 + np.exp(z)))  # half of the mass is on other words
        return [np.array([z / 2, no + z / 2]), np.array([no])]


def asked(prompt):
    """The code that a prompt asks for, and the ids of its ads."""
    form = prompt[prompt.rindex('{"code"') :]
    clicks = re.search(r'"clicks": \{(.*?)\}', form)[1]
    return re.search(r'"code": "(\w+)"', form)[1], re.findall(r'"([^"]+)": 0 or 1', clicks)


def answer(prompt, clicked=(), satisfaction=3):
    code, ids = asked(prompt)
    clicks = {id_: int(id_ in clicked) for id_ in ids}
    return json.dumps({"code": code, "clicks": clicks, "satisfaction": satisfaction})
