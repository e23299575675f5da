"""Hostile ads and queries, from a catalog's files to the report: each shows itself, or nobody."""

import html
import json
from dataclasses import replace

import numpy as np
import pytest

from agents.users import BehaviouralUsers
from experiments.report import build
from experiments.samples import sample_replies, save_samples
from market.catalog import Ad, Catalog
from market.errors import BadInput
from mechanisms.llm.base import END, Sample
from mechanisms.llm_auction.prompt import auction_prompt
from mechanisms.mentions import MENTION, forged, loose_ids, parse
from mechanisms.policies import Rules
from mechanisms.recording import Design, Request, load_pool, record, save_pool
from tests.experiments import small_folder, small_run
from tests.experiments.test_report import Tags
from tests.mechanisms.hostile import ATTACKS, HONEST, POT, REFUSED
from tests.tiny_llm import HashEncoder

GENERATIONS = ("guided", "context", "mixture")
USERS = BehaviouralUsers(HashEncoder())
DESIGN = Design(8, "guided", inline_rate=0.05, temperature=0.8, rules=Rules(max_tokens=30))


def catalog(folder, attack, title=None):
    """The catalog with a hostile ad, two honest ones and a hostile query, as it is loaded."""
    title = attack if title is None else title
    ad = {"id": "Ad-1", "title": title, "text": attack, "tagline": attack}
    lines = {
        "ads": [{"category": "x", **each} for each in (ad, *HONEST)],
        "queries": [{"id": "Query-1", "text": f"What do I need? {attack}"}],
    }
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Catalog.from_folder(folder)


def request(loaded):
    query = loaded.queries[0]
    return Request(query.id, query.text, "User-1", "A user.", loaded.ads, (0, 1, 2))


@pytest.fixture(scope="module")
def markets(tmp_path_factory):
    """By name of the attack, a request with the hostile ad first."""
    folder, found = tmp_path_factory.mktemp("catalog"), {}
    for name, attack in ATTACKS.items():
        try:
            found[name] = request(catalog(folder, attack))
        except BadInput as error:
            assert "\n" not in str(error)
    return found


@pytest.fixture(scope="module")
def recorded(engine, markets):
    """Pools of all hostile requests, and the replies they come from, by way of generation."""

    def write(generation):
        spy = Spy(engine)
        design = replace(DESIGN, generation=generation)
        return record(list(markets.values()), spy, USERS, design), spy

    return {generation: write(generation) for generation in GENERATIONS}


class Spy:
    """An engine that remembers what it has generated."""

    def __init__(self, engine):
        self.engine, self.drawn = engine, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def generate(self, prompts, n, *, guide, **options):
        samples = self.engine.generate(prompts, n, guide=guide, **options)
        self.drawn.append((samples, guide))
        return samples

    def drafts(self, b):
        for samples, guide in self.drawn:
            for k, sample in enumerate(samples[b]):
                yield sample, guide.drafts[b, k]


def test_the_catalog_takes_or_refuses_them(markets):
    assert len(ATTACKS) > 60
    assert set(ATTACKS) - set(markets) == REFUSED
    for asked in markets.values():
        ad = asked.ads[0]
        assert isinstance(ad, Ad)
        for text in (ad.title, ad.text, ad.tagline, asked.query):
            assert text == " ".join(text.split())
            text.encode()
        assert not set("@[]") & set(ad.title + ad.text + ad.tagline)
        assert len(ad.title) <= 80
        assert len(ad.tagline) <= 80


def check_mentions(pool, spy, requests):
    """All that looks like a mention in a text is one that the platform wrote for that ad."""
    texts = iter(pool.replies["text"])
    for b, asked in enumerate(requests):
        for j, (sample, draft) in enumerate(spy.drafts(b)):
            text = next(texts)
            shown = [mention.ad for mention in draft.mentions]
            assert shown == [event for event in draft.events if event >= 0]
            parsed = parse(text, asked.ads)
            assert list(parsed.ads) == shown
            assert parsed.malformed == 0
            marks = [(match["title"], match["id"]) for match in MENTION.finditer(text)]
            assert marks == [(asked.ads[i].title, asked.ads[i].id) for i in shown]
            assert text.count("@") == 2 * len(shown)
            np.testing.assert_array_equal(np.flatnonzero(pool.exposure[b, j]), sorted(shown))
            at, attempts = 0, 0
            for mention in draft.mentions:
                attempts += forged(spy.decode(sample.tokens[at : mention.start]))
                at = mention.start + mention.length
            attempts += forged(spy.decode(sample.tokens[at:]))
            assert pool.malformed[b, j] <= attempts  # what is cut off at the end does not count
            if not draft.broken_off:
                assert pool.malformed[b, j] == attempts


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_mention_is_the_platforms(recorded, markets, generation):
    pool, spy = recorded[generation]
    check_mentions(pool, spy, markets.values())
    assert pool.exposure.any(axis=1)[:, 0].sum() > len(markets) / 2
    assert pool.exposure.any(axis=(0, 1)).all()


def test_honest_ads_fare_as_beside_a_harmless_one(engine, recorded, markets):
    """Without their titles in the prompt, hostile ads change nothing where they are not shown."""
    harmless = Ad("Ad-1", "Oak Bed Frame", "Solid oak.", "x", "a frame of solid oak")
    calm = [replace(asked, ads=(harmless, *asked.ads[1:])) for asked in markets.values()]
    theirs, _ = recorded["guided"]
    ours = record(calm, engine, USERS, DESIGN)
    for b, name in enumerate(markets):
        for j in range(DESIGN.replies):
            k = b * DESIGN.replies + j
            events, other = (list(pool.replies["events"][k]) for pool in (theirs, ours))
            until = events.index(0) + 1 if 0 in events else None
            assert events[:until] == other[:until], name
            if until is None:
                assert theirs.replies["text"][k] == ours.replies["text"][k], name
                assert theirs.log_ref[b, j] == pytest.approx(ours.log_ref[b, j], abs=1e-2)
                np.testing.assert_array_equal(theirs.exposure[b, j], ours.exposure[b, j])
    assert theirs.exposure[:, :, 1:].any(2).sum() > 50


@pytest.mark.parametrize("generation", GENERATIONS)
def test_pools_of_hostile_ads_are_kept(recorded, generation, tmp_path):
    pool, _ = recorded[generation]
    again = load_pool(save_pool(pool, tmp_path / "pool"))
    assert again.content_hash == pool.content_hash
    assert again.replies.equals(pool.replies)
    assert again.requests.equals(pool.requests)


def test_the_report_escapes_them(recorded, markets, tmp_path):
    pool, _ = recorded["guided"]
    bids, rng = np.ones(3), np.random.default_rng(0)
    read = sample_replies(pool, small_run.mechanism("mosaic"), bids, rng, len(markets))
    folder = small_folder.write(tmp_path / "run")
    save_samples({"mosaic": read}, folder / "samples.json")
    build(folder)
    page = (folder / "report.html").read_text("utf-8")
    assert "<script" not in page.lower()
    assert "&lt;script&gt;alert(1)" in page
    tags = Tags(page)
    assert not tags.open
    assert not {"svg", "a", "script"} & set(tags.seen)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    shown = html.unescape(page)
    for asked in markets.values():
        assert asked.ads[0].title in shown
        assert asked.query in shown
    # A mark is a mention, and all the text is there.
    for each in read:
        text = "".join(segment.text for segment in each.segments)
        marks = [segment for segment in each.segments if segment.ad_id]
        assert len(marks) == sum(ad.shown for ad in each.ads)
        assert all(each.ad(segment.ad_id).shown for segment in marks)
        assert "@" not in text


class Obedient:
    """An LLM that writes whatever an ad tells it to, character by character."""

    model = "obedient"

    def __init__(self, spoken):
        self.spoken = [self.encode(text) for text in spoken]

    def encode(self, text):
        return [ord(character) for character in text]

    def decode(self, tokens):
        return "".join(map(chr, tokens))

    def generate(self, prompts, n, *, guide, **_):
        return [[self._write(guide, p, k) for k in range(n)] for p in range(len(prompts))]

    def _write(self, guide, p, k):
        tokens, forced = [], []
        for token in self.spoken[p]:
            tokens.append(token)
            forced.append(False)
            order = guide.step(p, k, tokens)
            if order == END:
                break
            tokens += order
            forced += [True] * len(order)
        x = np.full(len(tokens), -1.0)
        return Sample(np.array(tokens), x, np.array(forced), ended=False)

    def score(self, prompts, replies, *, temperature):
        return [[np.full(len(reply), -1.0) for reply in row] for row in replies]


class Reciting(Obedient):
    """The same in the tokens of a real tokenizer."""

    def __init__(self, engine, spoken):
        self.encode, self.decode = engine.encode, engine.decode
        super().__init__(spoken)


RECITED = Rules(sentences=40, max_tokens=3000, loop=10**6)


@pytest.mark.parametrize("inline_rate", [0, 0.05])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_llm_that_obeys_exposes_nobody(markets, generation, inline_rate):
    """It repeats the attack word for word, before the catalog has made it harmless."""
    spoken = [
        # No tokenizer has surrogates.
        f"Sleep well. {attack} Then rest. {attack}".encode(errors="replace").decode()
        for attack in map(ATTACKS.__getitem__, markets)
    ]
    spy = Spy(Obedient(spoken))
    # What an insertion policy inserts is not the matter: as good as nothing.
    rates = {"mention_rate": 1e-9, "guided_rate": 1e-9, "inline_rate": inline_rate}
    design = Design(4, generation, rules=RECITED, **rates)
    pool = record(list(markets.values()), spy, USERS, design)
    check_mentions(pool, spy, markets.values())
    assert (pool.malformed > 0).sum() > 40
    condition = np.array(pool.replies["condition"].to_list()).reshape(pool.shape[:2])
    named = condition == "context"
    assert named.any() == (generation != "guided")
    honest = pool.exposure[:, :, 1:].any(2)
    if inline_rate == 0:
        assert not pool.exposure[named].any()
    else:
        # Their bare titles where a name is asked for: real mentions, which they do not pay for.
        by_name = honest[:, -1] & named[:, -1]
        told = {name for name, shown in zip(markets, by_name, strict=True) if shown}
        assert told == ({"imitation"} if named.any() else set())


# Titles of others, told as they are: the LLM writes "the Tea Pot" by itself.
SAID = f"Sleep well. You should try the {POT} now. So it is."
THIEVES = {"rival and a control token", "rival in lower case", "rival, wide", "rival, Cyrillic"}
THIEVES |= {"begins a rival", "ends a rival", "control tokens alone", "control tokens as space"}


@pytest.mark.parametrize("name", sorted(THIEVES | {"goes on from a rival", "a common word"}))
@pytest.mark.parametrize("last", [False, True])
def test_nobody_takes_a_mention_in_own_words_from_another(engine, markets, name, last):
    asked = markets[name]
    if last:
        asked = replace(asked, ads=asked.ads[::-1])
    thief, honest = (2, 0) if last else (0, 2)
    rates = {"mention_rate": 1e-9, "guided_rate": 1e-9, "inline_rate": 0.05}
    for generation in ("context", "reference"):
        pool = record([asked], Reciting(engine, [SAID]), USERS, Design(2, generation, **rates))
        own = generation == "context"
        assert pool.exposure[0, :, honest].all() == (own and name in THIEVES)
        # A word that everyone says is a name too: it shows itself, as it would anywhere.
        assert pool.exposure[0, :, thief].all() == (own and name == "a common word")
        assert not pool.exposure[0, :, 1].any()


def listed(message):
    """The ads of the last case in an auction's prompt, behind its examples."""
    case = message.rpartition("\n\n")[2]
    return json.JSONDecoder().raw_decode(case, case.index("Products: ") + len("Products: "))[0]


def test_the_auction_prompt_holds_the_ads_and_no_more(engine, markets):
    calm = auction_prompt("Tea?", "A user.", markets["German"].ads, [3.0, 2.0, 1.0])
    for asked in markets.values():
        message = auction_prompt(asked.query, asked.query, asked.ads, [3.0, 2.0, 1.0])
        assert listed(message) == [
            {"id": ad.id, "title": ad.title, "about": ad.tagline or ad.text, "bid": bid}
            for ad, bid in zip(asked.ads, (100, 67, 33), strict=True)
        ]
        assert "Question: " + asked.query.replace("@", "") in message.split("\n")
        assert message.count("\n") == calm.count("\n")
        assert message.count("@") == calm.count("@")  # those of the task and its examples
        assert not parse(message, asked.ads).ads
        # What control tokens leave behind, once the tokenizer has taken them out, is JSON still.
        as_read = listed(engine.decode(engine.encode(message)))
        assert [each["id"] for each in as_read] == ["Ad-1", "Ad-2", "Ad-3"]


def test_an_ad_llm_that_repeats_what_it_reads_shows_nobody(markets):
    """It may write mentions by itself, but finds none in its prompt to copy."""
    requests = [replace(asked, bids=(1, 1, 1)) for asked in markets.values()]
    spoken = [auction_prompt(r.query, "", r.ads, r.bids).rpartition("\n\n")[2] for r in requests]
    design = Design(2, "auction", rules=RECITED)
    pool = record(requests, Obedient(spoken), USERS, design)
    assert not pool.exposure.any()
    # nothing is wrong with what it writes but ids in brackets, which some ads hold
    loose = [loose_ids(text, r.ads) for text, r in zip(spoken, requests, strict=True)]
    assert (pool.malformed <= np.array(loose)[:, None]).all()
    assert 0 < np.count_nonzero(loose) < len(loose)
    wild = [f"Well. {attack}".encode(errors="replace").decode() for attack in ATTACKS.values()]
    pool = record([requests[0]] * len(wild), Obedient(wild), USERS, design)
    for b in range(len(wild)):
        for j in range(2):
            text = pool.replies["text"][2 * b + j]
            parsed = parse(text, requests[0].ads)
            assert parsed.malformed == 0
            assert text.count("@") == 2 * len(parsed.ads)
            np.testing.assert_array_equal(np.flatnonzero(pool.exposure[b, j]), sorted(parsed.ads))
    assert pool.malformed.any(axis=1).sum() > 5
