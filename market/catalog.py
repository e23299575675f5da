"""The catalog: the ads, users and queries that a market is made of.

An ad is shown in a reply as `@Title@[Ad-ID]`, or with a tagline as `@Title@[Ad-ID] (tagline)`. They
come from advertisers, who have a reason to forge them: every `Ad` is neutralised when it is made
(`market.text`), and later code may trust it.
"""

import hashlib
import html
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import unquote

from market.text import neutral, neutral_tagline, neutral_title, plain, short_text, short_title
from mechanisms.errors import BadInput, at, instead

_BUNDLED = Path(__file__).with_name("data") / "catalog"
_ID = re.compile(r"[A-Za-z0-9_.-]+")
_Record = TypeVar("_Record", "Ad", "UserProfile", "Query")


@dataclass(frozen=True)
class Ad:
    """One ad. Its texts are one line without `@`, `[`, `]`; the title has no double quotes.

    `tagline` says what the thing is, as a noun phrase that a mention puts in parentheses: at most
    12 words that end no sentence and close no parenthesis. "" where nobody wrote one.
    """

    id: str
    title: str
    text: str
    category: str
    tagline: str = ""

    def __post_init__(self) -> None:
        _one_line_each(self)
        title = neutral_title(self.title)
        if not title:
            raise BadInput(f"ad {self.id:.60}: title {self.title!r:.30} is empty; add a word")
        object.__setattr__(self, "title", title)
        object.__setattr__(self, "text", neutral(self.text))
        object.__setattr__(self, "tagline", neutral_tagline(self.tagline))


@dataclass(frozen=True)
class UserProfile:
    """Someone who asks, described in a few words that an LLM can play."""

    id: str
    description: str
    name: str = ""

    def __post_init__(self) -> None:
        _one_line_each(self)


@dataclass(frozen=True)
class Query:
    """What a user asks the chatbot; `category` is that of the nearest ads, "" where nobody said."""

    id: str
    text: str
    category: str = ""

    def __post_init__(self) -> None:
        _one_line_each(self)
        if not self.text:
            raise BadInput(f"query {self.id:.60}: text is empty; write it or drop the query")


@dataclass(frozen=True)
class Catalog:
    """Ads, users, queries in a fixed order; `relevance[query id, ad id]` is 0 or 1 if labelled."""

    ads: tuple[Ad, ...]
    users: tuple[UserProfile, ...]
    queries: tuple[Query, ...]
    # A dict has no hash: left out of the catalog's own, still part of equality and content_hash.
    relevance: Mapping[tuple[str, str], int] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name in ("ads", "users", "queries"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("ads", "queries"):
            if not getattr(self, name):
                raise BadInput(f"the catalog has no {name}; add at least one")
        ads = _distinct("ad id", (ad.id for ad in self.ads))
        _distinct("ad title", (ad.title for ad in self.ads))
        _distinct("user id", (user.id for user in self.users))
        queries = _distinct("query id", (query.id for query in self.queries))
        for (query, ad), label in (self.relevance or {}).items():
            if query not in queries or ad not in ads or label not in (0, 1):
                raise BadInput(
                    f"the relevance of ad {ad!r:.60} to query {query!r:.60} is {label!r:.60}; "
                    "give 0 or 1 to a query id and an ad id of the catalog"
                )

    @classmethod
    def load(cls, spec: str | Path) -> Self:
        """Load "bundled" or a folder: gem-bench if it has `products.tsv`, else as `from_folder`."""
        if spec == "bundled":
            return cls.bundled()
        folder = Path(spec)
        if not os.path.isdir(folder):  # as opposed to `folder.is_dir()`, of any string
            raise BadInput(f"{spec!s:.200}: no such folder; name one (--catalog DIR), or bundled")
        is_gem_bench = (folder / "products.tsv").exists()
        return cls.gem_bench(folder) if is_gem_bench else cls.from_folder(folder)

    @classmethod
    def bundled(cls) -> Self:
        """Return the catalog that comes with the program: fictional brands, written for it."""
        return cls.from_folder(_BUNDLED)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Load `ads.jsonl`, `queries.jsonl`, `users.jsonl` (without it, the bundled profiles).

        Each line is an object with the fields of `Ad`, `Query` or `UserProfile`; other keys are
        ignored.
        """
        folder = Path(folder)
        ads = _records(folder / "ads.jsonl", Ad, "id", "title", "text", "category")
        users = _users(folder if (folder / "users.jsonl").exists() else _BUNDLED)
        queries = _records(folder / "queries.jsonl", Query, "id", "text")
        with at(folder):
            return cls(ads, users, queries)

    @classmethod
    def gem_bench(cls, folder: str | Path) -> Self:
        """Load gem-bench (arXiv 2509.14221): real products, queries, relevance labels and prompts.

        Ids are `Ad-<product_id>`, `Query-<query_id>` and `Prompt-<line>`; a prompt sent twice stays
        twice. An ad's category is its unnamed cluster in the data, "cluster-0" to "cluster-5"; a
        search query takes the cluster of most of its labelled products. gem-bench has no user
        profiles: the users are the bundled ones.
        """
        folder = Path(folder)
        columns = ("product_id", "title", "description", "category")
        products = list(_table(folder / "products.tsv", *columns))
        titles = [short_title(row["title"]) for _, row in products]
        # For a reader, case alone does not set two titles apart.
        shared = Counter(title.casefold() for title in titles)
        ads = []
        for (where, row), title in zip(products, titles, strict=True):
            number = row["product_id"]
            ad = {
                "id": f"Ad-{number}",
                "title": title if shared[title.casefold()] == 1 else f"{title} {number}",
                # The whole title too: what the short one leaves out tells products apart.
                "text": f"{plain(html.unescape(row['title']))}. {short_text(row['description'])}",
                "category": "cluster-" + row["category"].removesuffix(".0"),
            }
            ads.append(_make(Ad, ad, where))

        cluster = {ad.id: ad.category for ad in ads}
        relevance: dict[tuple[str, str], Any] = {}
        clusters: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for _, row in _table(folder / "relevance.tsv", "query_id", "product_id", "relevant"):
            query, ad_id = f"Query-{row['query_id']}", f"Ad-{row['product_id']}"
            relevance[query, ad_id] = {"0": 0, "1": 1}.get(row["relevant"], row["relevant"])
            clusters[query][cluster.get(ad_id, "")] += 1

        queries = []
        for where, row in _table(folder / "queries.tsv", "query_id", "query_text"):
            query = f"Query-{row['query_id']}"
            counts = clusters[query]
            category = max(sorted(counts), key=counts.__getitem__, default="")
            text = unquote(row["query_text"])
            queries.append(_make(Query, {"id": query, "text": text, "category": category}, where))
        for number, where, row in _objects(folder / "prompts.jsonl", "prompt", "category"):
            prompt = {"id": f"Prompt-{number}", "text": row["prompt"], "category": row["category"]}
            queries.append(_make(Query, prompt, where))
        with at(folder):
            return cls(tuple(ads), _users(_BUNDLED), tuple(queries), relevance)

    def select(
        self,
        categories: Collection[str] | None = None,
        ads: Collection[str] | None = None,
        queries: Collection[str] | None = None,
    ) -> Self:
        """Return the part with these categories, ad ids and query ids (None: all), order kept."""
        all_categories = {item.category for item in (*self.ads, *self.queries)}
        categories = _known("category", categories, all_categories)
        ads = _known("ad id", ads, {ad.id for ad in self.ads})
        queries = _known("query id", queries, {query.id for query in self.queries})
        kept_ads = [a for a in self.ads if a.id in ads and a.category in categories]
        kept_queries = [q for q in self.queries if q.id in queries and q.category in categories]
        relevance = self.relevance
        if relevance is not None:
            ads, queries = {ad.id for ad in kept_ads}, {query.id for query in kept_queries}
            relevance = {k: v for k, v in relevance.items() if k[0] in queries and k[1] in ads}
        return type(self)(tuple(kept_ads), self.users, tuple(kept_queries), relevance)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the content as canonical JSON; the name of this catalog in results."""
        content: dict[str, Any] = {}
        for name in ("ads", "users", "queries"):
            content[name] = [asdict(item) for item in getattr(self, name)]
        if self.relevance is not None:
            content["relevance"] = sorted([*key, int(v)] for key, v in self.relevance.items())
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _one_line_each(item: Ad | UserProfile | Query) -> None:
    """Check the id and bring every field to one plain line."""
    kind = type(item).__name__
    for name, value in vars(item).items():
        if not isinstance(value, str):
            raise BadInput(f"{kind} {item.id!r:.60}: {name} is {value!r:.60}; write text")
        if name != "id":
            object.__setattr__(item, name, plain(value))
    if not _ID.fullmatch(item.id):
        raise BadInput(f"{kind} {item.id!r:.60}: bad id; use letters A-Z a-z, digits and _ . -")


def _distinct(what: str, values: Iterable[str]) -> set[str]:
    times = Counter(values)
    for value in times:
        if times[value] > 1:
            raise BadInput(f"the catalog has {what} {value!r:.60} twice; keep or rename one")
    return set(times)


def _known(what: str, wanted: Collection[str] | None, known: set[str]) -> set[str]:
    wanted = known if wanted is None else {wanted} if isinstance(wanted, str) else set(wanted)
    if unknown := sorted(wanted - known, key=str):
        mend = instead(str(unknown[0]), sorted(known))
        raise BadInput(f"unknown {what} {unknown[0]!r:.60}; {mend}")
    return wanted


def _users(folder: Path) -> tuple[UserProfile, ...]:
    users = _records(folder / "users.jsonl", UserProfile, "id", "description")
    if not users:
        raise BadInput(
            f"{folder / 'users.jsonl'}: has no users; add one, or delete it for the bundled ones"
        )
    return users


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, "file line n", line) of the lines that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; create it, or name another folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); give a text file in UTF-8") from None
    # Not splitlines(): a JSON string may hold U+2028 and its kin as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, f"{path} line {number}", line


def _objects(path: Path, *required: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, where, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise BadInput(f"{where}: no JSON object; write {{...}} on one line")
        if missing := [key for key in required if key not in row]:
            raise BadInput(f"{where}: lacks key {missing[0]!r}; add it")
        yield number, where, row


def _records(path: Path, kind: type[_Record], *required: str) -> tuple[_Record, ...]:
    known = kind.__dataclass_fields__
    return tuple(
        _make(kind, {key: row[key] for key in row if key in known}, where)
        for _, where, row in _objects(path, *required)
    )


def _make(kind: type[_Record], fields: dict[str, Any], where: str) -> _Record:
    with at(where):
        return kind(**fields)


def _table(path: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("file line n", row) of a tab-separated file whose cells may be quoted as in CSV."""
    header: list[str] = []
    for _, where, line in _lines(path):
        cells = [_unquoted(cell) for cell in line.split("\t")]
        if not header:
            header = cells
            if missing := [name for name in columns if name not in header]:
                raise BadInput(f"{where}: lacks column {missing[0]!r}; add it")
        elif len(cells) != len(header):
            raise BadInput(f"{where}: has {len(cells)} cells; give {len(header)}, as the header")
        else:
            yield where, dict(zip(header, cells, strict=True))


def _unquoted(cell: str) -> str:
    quoted = len(cell) > 1 and cell.startswith('"') and cell.endswith('"')
    return cell[1:-1].replace('""', '"') if quoted else cell
