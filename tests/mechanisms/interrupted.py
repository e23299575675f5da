"""Recordings that break off after any batch, and when two of them are the same."""

from agents.users import BehaviouralUsers
from mechanisms.llm.mixture import generate_mixture
from mechanisms.policies import Rules
from mechanisms.recording import Design, Request, record
from tests.tiny_llm import ADS, HashEncoder

USERS = BehaviouralUsers(HashEncoder())
QUERIES = ("How do I sleep?", "Which tea is good?", "Do my shoes fit?", "Tea?", "Is my bed soft?")
GUIDED = Design(replies=8, temperature=0.8, rules=Rules(max_tokens=60, loop=10**6))
CONTEXT = Design(replies=4, generation="context", temperature=0.8, rules=Rules(max_tokens=30))
TOKEN = Design(replies=2, generation="token", temperature=0.8, rules=Rules(max_tokens=30))


def recorded(engine, design=GUIDED, ads=ADS):
    requests = [
        Request(f"Q{b}", query, f"U{b}", "A user.", ads, range(len(ads)))
        for b, query in enumerate(QUERIES)
    ]
    return record(requests, engine, USERS, design, seed=5)


class Counting:
    """Counts the batches that an engine does, and breaks off after `fuse` of them."""

    def __init__(self, engine, fuse=10**6):
        self.engine, self.batches, self.fuse = engine, 0, fuse

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def generate(self, *args, done=None, **options):
        return self.engine.generate(*args, done=self.burning(done), **options)

    def generate_mixture(self, *args, done=None, **options):
        return generate_mixture(self.engine, *args, done=self.burning(done), **options)

    def score(self, *args, done=None, **options):
        return self.engine.score(*args, done=self.burning(done), **options)

    def burning(self, done):
        def report(results):
            if self.batches == self.fuse:
                raise KeyboardInterrupt
            self.batches += 1
            if done:
                done(results)

        return report


def same(ours, theirs):
    assert ours.content_hash == theirs.content_hash
    assert ours.replies.equals(theirs.replies)
    assert ours.manifest == theirs.manifest
