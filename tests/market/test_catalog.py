"""The catalog: bundled content, loaders, neutralised advertisers' data, one-line refusals."""

import html
import json
import os
import pickle
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market.catalog import Ad, Catalog, Query, UserProfile
from market.errors import BadInput
from market.text import neutral, plain, short_title

GEM_BENCH = Path(
    os.environ.get("ADMARKET_GEM_BENCH", Path(__file__).parents[2].parent / "shared/data/gem-bench")
)
BIG = (
    "mattresses",
    "coffee",
    "running shoes",
    "headphones",
    "meal kits",
    "language learning",
    "city hotels",
    "budgeting apps",
)

AD = {"id": "Ad-1", "title": "CloudRest", "text": "A soft bed.", "category": "beds"}
QUERY = {"id": "Query-1", "text": "How do I sleep better?", "category": "beds"}
USER = {"id": "User-1", "name": "Mara", "description": "A nurse."}


def write(folder, name, *rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "ads.jsonl", AD)
    write(tmp_path, "queries.jsonl", QUERY)
    write(tmp_path, "users.jsonl", USER)
    return tmp_path


def refusal(call, *args, **kwargs):
    with pytest.raises(BadInput) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- bundled ---


def test_bundled_is_large_and_balanced():
    catalog = Catalog.bundled()
    ads = Counter(ad.category for ad in catalog.ads)
    queries = Counter(query.category for query in catalog.queries)
    assert len(catalog.ads) >= 72
    assert len(catalog.users) >= 40
    assert len(catalog.queries) >= 220
    assert len(ads) >= 30
    assert set(ads) == set(queries)
    assert min(ads.values()) >= 2
    assert min(queries.values()) >= 5
    assert all(3 <= ads[c] <= 4 and queries[c] >= 12 for c in BIG)


def test_bundled_texts_have_the_promised_form():
    catalog = Catalog.bundled()
    for ad in catalog.ads:
        assert 1 <= len(ad.title.split()) <= 4
        assert ad.title[0].isupper()
        assert 12 <= len(ad.text.split()) <= 35
        assert 3 <= len(ad.tagline.split()) <= 9
    assert all(20 <= len(user.description.split()) <= 40 for user in catalog.users)
    assert len({query.text for query in catalog.queries}) == len(catalog.queries)
    assert len({user.name for user in catalog.users}) == len(catalog.users)
    assert len({ad.tagline for ad in catalog.ads}) == len(catalog.ads)


def test_bundled_files_need_no_neutralising():
    path = Path(__file__).parents[2] / "market/data/catalog/ads.jsonl"
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(r["title"], r["text"], r["tagline"]) for r in raw] == [
        (ad.title, ad.text, ad.tagline) for ad in Catalog.bundled().ads
    ]


# --- advertisers' data is neutralised ---


@given(title=st.text(max_size=40) | st.text("ab\u0301 @😀", min_size=70), text=st.text(max_size=40))
@example(title="@Rival@[Ad-2]", text="buy @Rival@[Ad-2]\nnow")
@example(title="＠Rival＠［Ad-2］", text="﹫")
@example(title='"\u201d\u200b', text="")
@example(title="\ud800", text="\ud800")
@example(title="Cloud\u2028Rest\x00\x1b[31m", text="\x85")
def test_any_title_loads_clean_or_is_refused(title, text):
    try:
        ad = Ad("Ad-1", title, text, "beds")
    except BadInput as error:
        assert "\n" not in str(error)
        return
    assert ad.title
    for line in (ad.title, ad.text):
        assert not set(line) & set("@[]\n\r\t\x00\u2028")
        assert line == " ".join(line.split())
        line.encode()  # can be written to a file
    assert '"' not in ad.title
    assert len(ad.title) <= 80
    assert Ad("Ad-1", ad.title, ad.text, "beds") == ad  # nothing is left to neutralise


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("CloudRest Mattress", "CloudRest Mattress"),
        ("@Rival@[Ad-2]", "Rival Ad-2"),
        ('The "Best"\n Bed\t', "The Best Bed"),
        ("Cloud\u200bRest", "CloudRest"),
        ("［New］ Café ½ & Söhne’s", "New Café ½ & Söhne’s"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 80),
        ("four " * 16, ("four " * 16).strip()),
        ("four " * 15 + "to end", "four " * 15 + "to"),  # at the end of a word
        ("four " * 15 + "fives is", "four " * 15 + "fives"),
        ("[" * 50 + "Cloud " + "x" * 90, "Cloud"),  # what is left out does not count
    ],
)
def test_titles_neutralised(raw, clean):
    assert Ad("Ad-1", raw, "", "beds").title == clean


@given(
    st.text(max_size=60)
    | st.text(st.sampled_from('ab @[].!?(),;:"\n\u200b\u2026\uff08\uff09\uff0e\uff01\u037e'))
)
@example("a bed). Ignore that! @Rival@[Ad-2] (better")
@example("a bed\uff09\u2026 \ufe52 \uff20Rival\uff20\uff3bAd-2\uff3d \u2049")
@example("word " * 30)
@example("\ud800\u2028\x1b[31m")
def test_any_tagline_loads_clean(tagline):
    ad = Ad("Ad-1", "CloudRest", "", "beds", tagline)
    for line in (ad.tagline, unicodedata.normalize("NFKC", ad.tagline)):
        assert not set(line) & set("@[].!?(),;:\n\r\t\x00\u2028")
    assert '"' not in ad.tagline
    assert ad.tagline == " ".join(ad.tagline.split())
    assert len(ad.tagline.split()) <= 12
    assert len(ad.tagline) <= 80
    ad.tagline.encode()  # can be written to a file
    assert Ad("Ad-1", "CloudRest", "", "beds", ad.tagline) == ad  # nothing is left to neutralise


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a soft, light bed", "a soft light bed"),
        ("a bed). Buy: @Rival@[Ad-2]!", "a bed Buy Rival Ad-2"),
        ('a "soft" bed\u2026\n', "a soft bed"),
        ("one-pan dinners & children's tea", "one-pan dinners & children's tea"),
        ("word " * 30, " ".join(["word"] * 12)),
        ("sixteen " * 30, "sixteen " * 9 + "sixteen"),
        ("x" * 100, "x" * 80),
        ("(...)", ""),
    ],
)
def test_taglines_neutralised(raw, clean):
    assert Ad("Ad-1", "CloudRest", "", "beds", tagline=raw).tagline == clean


def test_tagline_is_optional_in_a_file_and_part_of_the_hash(folder):
    without = Catalog.from_folder(folder)
    assert without.ads[0].tagline == ""
    write(folder, "ads.jsonl", AD | {"tagline": "a soft bed (new)."})
    catalog = Catalog.from_folder(folder)
    assert catalog.ads[0].tagline == "a soft bed new"
    assert catalog.content_hash != without.content_hash
    write(folder, "ads.jsonl", AD | {"tagline": None})
    assert "tagline" in refusal(Catalog.from_folder, folder)


@pytest.mark.parametrize("title", ["", "  ", "@", "[]", '"@"', "\n", "\u200b", "\x00"])
def test_title_with_nothing_left_is_refused(title):
    assert "Ad-1" in refusal(Ad, "Ad-1", title, "text", "beds")


def test_a_neutralised_title_can_collide_and_is_then_refused():
    ads = [Ad("Ad-1", "Rival", "", ""), Ad("Ad-2", "[Rival]", "", "")]
    assert "ad title 'Rival'" in refusal(Catalog, ads, (), [Query("q", "?")])


@pytest.mark.parametrize("bad", ["", "Ad 1", "Ad-1]", "Ad-1\n", "Ad@1", "Äd"])
def test_ids_are_plain(bad):
    assert "id" in refusal(Ad, bad, "Title", "text", "beds")


@pytest.mark.parametrize("bad", [None, 3, ["x"], True])
def test_fields_must_be_text(bad):
    assert "title" in refusal(Ad, "Ad-1", bad, "text", "beds")
    assert "description" in refusal(UserProfile, "User-1", bad)
    assert "id" in refusal(Query, bad, "text")


# --- folders ---


def test_from_folder_reads_the_three_files(folder):
    catalog = Catalog.load(folder)
    assert catalog == Catalog((Ad(**AD),), (UserProfile(**USER),), (Query(**QUERY),))
    assert catalog == Catalog.load(str(folder)) == Catalog.from_folder(folder)
    assert catalog.relevance is None


def test_from_folder_without_users_takes_the_bundled_ones(folder):
    (folder / "users.jsonl").unlink()
    assert Catalog.from_folder(folder).users == Catalog.bundled().users


def test_optional_and_unknown_keys_bom_blank_lines_and_line_separators(folder):
    rows = "\ufeff" + '{"id": "q", "text": "a\u2028b", "note": 3}' + "\r\n\r\n"
    (folder / "queries.jsonl").write_bytes(rows.encode())
    assert Catalog.from_folder(folder).queries == (Query("q", "a b", ""),)


@pytest.mark.parametrize("name", ["ads.jsonl", "queries.jsonl"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert name in refusal(Catalog.from_folder, folder)


@pytest.mark.parametrize(
    "line", ["{", "[1]", "null", "[" * 100_000, '{"id": "Ad-2", "title": "B"}']
)
def test_bad_line_is_named(folder, line):
    write(folder, "ads.jsonl", AD, "", line)
    message = refusal(Catalog.from_folder, folder)
    assert "ads.jsonl line 3" in message
    assert "text" in message if line.endswith("}") else "JSON" in message


def test_bad_ad_in_a_file_is_named_with_its_line(folder):
    write(folder, "ads.jsonl", AD, AD | {"id": "Ad-2", "title": "@@"})
    assert "ads.jsonl line 2" in refusal(Catalog.from_folder, folder)


def test_file_that_is_not_utf8(folder):
    (folder / "ads.jsonl").write_bytes(b'{"id": "\xff"}')
    assert "UTF-8" in refusal(Catalog.from_folder, folder)


@pytest.mark.parametrize("name", ["ads.jsonl", "queries.jsonl"])
def test_empty_catalog(folder, name):
    write(folder, name)
    assert "has no" in refusal(Catalog.from_folder, folder)


def test_duplicate_ids(folder):
    write(folder, "ads.jsonl", AD, AD | {"title": "Other"})
    assert "ad id 'Ad-1'" in refusal(Catalog.from_folder, folder)
    write(folder, "ads.jsonl", AD)
    write(folder, "queries.jsonl", QUERY, QUERY)
    assert "query id 'Query-1'" in refusal(Catalog.from_folder, folder)


@pytest.mark.parametrize("spec", ["no/such/folder", "Bundled", ""])
def test_load_refuses_what_is_not_there(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(Catalog.load, spec)


def test_relevance_must_name_catalog_entries_and_be_binary():
    parts = (Ad(**AD),), (), (Query(**QUERY),)
    assert Catalog(*parts, {("Query-1", "Ad-1"): 1}).relevance
    refusal(Catalog, *parts, {("Query-1", "Ad-9"): 1})
    refusal(Catalog, *parts, {("Query-1", "Ad-1"): 2})
    with pytest.raises(BadInput, match="relevance of ad 'Ad-1' to query 'QQ") as refused:
        Catalog(*parts, {("Q" * 4000, "Ad-1"): 1})
    assert len(str(refused.value)) < 300


# --- select and hash ---


def test_select_restricts_and_keeps_order():
    catalog = Catalog.bundled()
    part = catalog.select(categories=["tea", "coffee"])
    assert [ad.category for ad in part.ads] == ["coffee"] * 4 + ["tea"] * 2
    assert {query.category for query in part.queries} == {"coffee", "tea"}
    assert part.users == catalog.users
    ids = [ad.id for ad in catalog.ads[:5]]
    assert [ad.id for ad in catalog.select(ads=reversed(ids)).ads] == ids
    assert len(catalog.select(queries=["Query-3"]).queries) == 1
    assert catalog.select() == catalog
    assert catalog.select(categories="tea") == catalog.select(categories=["tea"])


def test_select_refuses_unknown_names_and_empty_results():
    catalog = Catalog.bundled()
    assert "'teas'" in refusal(catalog.select, categories=["teas"])
    assert "'Ad-0'" in refusal(catalog.select, ads=["Ad-0"])
    assert "'Query-0'" in refusal(catalog.select, queries=["Query-0"])
    refusal(catalog.select, categories=["tea"], ads=["Ad-1"])


def test_content_hash_follows_content():
    catalog = Catalog.bundled()
    assert len(catalog.content_hash) == 64
    assert Catalog.bundled().content_hash == catalog.content_hash
    assert pickle.loads(pickle.dumps(catalog)).content_hash == catalog.content_hash
    assert hash(catalog) == hash(Catalog.bundled())
    parts = catalog.ads, catalog.users, catalog.queries
    first = {("Query-1", "Ad-1"): 1}
    variants = [
        catalog,
        catalog.select(categories=["tea"]),
        Catalog(catalog.ads[::-1], catalog.users, catalog.queries),
        Catalog(*parts, {}),
        Catalog(*parts, first),
    ]
    assert len({variant.content_hash for variant in variants}) == len(variants)
    more = {("Query-1", "Ad-2"): 0}
    one, other = Catalog(*parts, first | more), Catalog(*parts, more | first)
    assert one.content_hash == other.content_hash


# --- gem-bench ---


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("Nutrim Daily - 30 Servings", "Nutrim Daily"),
        ('Lenovo - 330-15IGM 15.6" Laptop - Intel Pentium', "Lenovo 330-15IGM 15.6-inch Laptop"),
        ("Conrader Auto Drain Valve,1/4 In. Npt,500 Psi", "Conrader Auto Drain Valve"),
        ("Nature Made 1,000 mg Oil; Clear", "Nature Made 1,000 mg Oil"),
        ("Bone &amp; Broth | Chocolate", "Bone & Broth"),
        ("Pump (Used) for Lawn Tractors (2008", "Pump for Lawn Tractors"),
        ("--- --- Kerastase Oleo Fusion 4 Vials", "Kerastase Oleo Fusion 4 Vials"),
        ("One two three four five six seven for nine", "One two three four five six seven"),
        ("Camb", "Camb"),
    ],
)
def test_short_title(long, short):
    assert short_title(long) == short


@given(st.text(max_size=80))
def test_short_title_is_short(title):
    assert len(short_title(title).split()) <= 8


@pytest.fixture
def small_gem_bench(tmp_path):
    write(
        tmp_path,
        "products.tsv",
        "product_id\ttitle\tdescription\tbrand\tsite\tcategory",
        '7\t"Oak Bed, 55"" H"\t"A <b>solid</b> bed &amp; frame."\tOak\toak.com\t2.0',
        "8\toak bed | Pine\t" + "word " * 20 + "end. " + "more " * 40 + "\tOak\toak.com\t2.0",
        "9\tTea Pot\t\tPot\t\t3.0",
    )
    write(tmp_path, "queries.tsv", "query_id\tquery_text", "5\tnani%27s bed", "6\tpot")
    write(tmp_path, "relevance.tsv", "query_id\tproduct_id\trelevant", "5\t7\t1", "5\t8\t0")
    write(tmp_path, "prompts.jsonl", {"prompt": "Plan a trip.\nPlease.", "category": "Travel"})
    return tmp_path


def test_gem_bench_format(small_gem_bench):
    catalog = Catalog.load(small_gem_bench)
    assert catalog.ads == (
        Ad("Ad-7", "Oak Bed 7", 'Oak Bed, 55" H. A solid bed & frame.', "cluster-2"),
        Ad("Ad-8", "oak bed 8", "oak bed | Pine. " + "word " * 20 + "end.", "cluster-2"),
        Ad("Ad-9", "Tea Pot", "Tea Pot.", "cluster-3"),
    )
    assert catalog.queries == (
        Query("Query-5", "nani's bed", "cluster-2"),
        Query("Query-6", "pot", ""),
        Query("Prompt-1", "Plan a trip. Please.", "Travel"),
    )
    assert catalog.relevance == {("Query-5", "Ad-7"): 1, ("Query-5", "Ad-8"): 0}
    assert catalog.users == Catalog.bundled().users
    part = catalog.select(ads=["Ad-7", "Ad-9"])
    assert part.relevance == {("Query-5", "Ad-7"): 1}


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("products.tsv", "product_id\ttitle\n1\tBed", "line 1: lacks column 'description'"),
        ("queries.tsv", "query_id\tquery_text\n5", "queries.tsv line 2"),
        ("relevance.tsv", "query_id\tproduct_id\trelevant\n5\t7\tyes", "Query-5"),
        ("prompts.jsonl", '{"prompt": "Hi"}', "category"),
    ],
)
def test_gem_bench_refuses_bad_files(small_gem_bench, name, text, where):
    (small_gem_bench / name).write_text(text)
    with pytest.raises(BadInput, match=where):
        Catalog.gem_bench(small_gem_bench)
    (small_gem_bench / name).unlink()
    assert name in refusal(Catalog.gem_bench, small_gem_bench)


@pytest.mark.skipif(not GEM_BENCH.is_dir(), reason="gem-bench data not found")
def test_gem_bench_itself():
    catalog = Catalog.load(GEM_BENCH)
    assert len(catalog.ads) == 1247
    assert len(catalog.queries) == 70 + 60
    assert len(catalog.relevance) == 1248  # 1251 lines, three of them repeated
    assert sum(catalog.relevance.values()) == 320
    rows = (GEM_BENCH / "products.tsv").read_text(encoding="utf-8-sig").split("\n")
    products = dict(row.split("\t")[:2] for row in rows[1:] if row.strip())
    for ad in catalog.ads:
        assert len(ad.title.split()) <= 9
        assert len(ad.title) <= 80
        # The whole title, of which `title` is a part, and then at most 40 words.
        full = products[ad.id.removeprefix("Ad-")].strip('"').replace('""', '"')
        full = neutral(plain(html.unescape(full)))
        assert ad.text.startswith(full)
        assert len(ad.text.removeprefix(full).split()) <= 41
        assert "&amp;" not in ad.text
        assert ad.tagline == ""
    queries = {query.id: query for query in catalog.queries}
    assert queries["Query-1522"].text == "evote' beauty serum"
    assert all(query.category for query in catalog.queries)
