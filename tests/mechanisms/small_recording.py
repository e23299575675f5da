"""Three requests, and designs to record replies to them with the tiny LLM."""

from agents.users import BehaviouralUsers
from mechanisms.policies import Rules
from mechanisms.recording import Design, Request
from tests.tiny_llm import ADS, Copy, HashEncoder

QUERIES = ("How do I sleep better?", "Which tea is good?", "Do my shoes fit?")
USERS = BehaviouralUsers(HashEncoder())
# One-word titles that the tiny LLM writes by itself, for the context condition.
WORDS = (Copy("Ad-1", "like"), Copy("Ad-2", "just"), Copy("Ad-3", "less"))
# The tiny LLM loops a lot; `loop` out of reach but where loops are the matter.
RULES = Rules(max_tokens=120, loop=10**6)
GUIDED = Design(replies=24, temperature=0.8, rules=RULES)


def requests(ads=ADS, queries=QUERIES):
    return [
        Request(f"Query-{b}", query, f"User-{b}", f"User number {b}.", ads, range(len(ads)))
        for b, query in enumerate(queries)
    ]
