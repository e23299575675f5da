"""Text helpers of the catalog: one plain line, neutralised advertisers' texts, short titles."""

import html
import re
import unicodedata

_MARKER = frozenset("@[]")
_PUNCTUATION = frozenset(".!?(),;:")
_TAGLINE_WORDS = 12
_LENGTH = 80
_DANGLING = re.compile(r"(?i)for|with|and|in|of|by|the|an?|to|from|on|at|x|w/|\W+|\S*\.\.\.")
_QUOTES = str.maketrans("", "", '"＂“”„‟«»')


def plain(text: str) -> str:
    """Return `text` on one line, without control or invisible characters, single-spaced."""
    # Cc control; Cs unpaired surrogate, which UTF-8 cannot hold; Cf invisible, so it leaves no gap.
    blank = {"Cc": " ", "Cs": " ", "Cf": ""}
    return " ".join("".join(blank.get(unicodedata.category(c), c) for c in text).split())


def neutral(text: str) -> str:
    """Return an advertiser's text without `@`, `[`, `]`, so that it cannot forge a mention."""
    return _without(_MARKER, text)


def neutral_title(title: str) -> str:
    """Return a title as `neutral` does, without double quotes, cut to 80 characters."""
    return _cut(neutral(title.translate(_QUOTES)))


def neutral_tagline(tagline: str) -> str:
    """Return up to 12 words that, in parentheses, neither close them nor end a sentence."""
    words = _without(_MARKER | _PUNCTUATION, tagline.translate(_QUOTES)).split()
    return _cut(" ".join(words[:_TAGLINE_WORDS]))


def short_title(title: str) -> str:
    """Return a shop's long product title as at most 8 words that read well inside a sentence."""
    title = plain(html.unescape(title))
    title = re.sub(r"(\d)\s*(?:\"+|'')", r"\1-inch", title)
    title = re.sub(r"\([^()]*(?:\)|$)|[()]", " ", title).lstrip("-*#.!:, ") or title
    # A separator ends the title, unless it leaves a lone word: "Lenovo - 330 Laptop" reads on.
    for cut in re.finditer(r"\s[-–—]+\s|[|;]|(?<!\d),|,(?!\d)|\s(?i:color|size|model):", title):
        if len(re.findall(r"\w\S*", title[: cut.start()])) >= 2:
            title = title[: cut.start()]
            break
    words = re.sub(r"\s[-–—]+\s|[|;]|,(?=\s)", " ", title).split()[:8]
    # The cut at 8 words may leave a word that waits for the next one.
    while len(words) > 2 and _DANGLING.fullmatch(words[-1]):
        words.pop()
    return " ".join(words).rstrip(",;:-/&+ ")


def short_text(text: str, most: int = 40, least: int = 12) -> str:
    """Return a description without HTML, cut to `most` words at the end of a sentence or word."""
    text = plain(re.sub(r"<[A-Za-z/!][^<>]*>|</\w*$", " ", html.unescape(text)))
    words = text.split()
    if len(words) <= most:
        return text
    for end in range(most, least - 1, -1):
        if words[end - 1].endswith((".", "!", "?")):
            return " ".join(words[:end])
    return " ".join(words[:most]).rstrip(",;:-& ") + "..."


def _cut(text: str) -> str:
    """Cut `text` to 80 characters, at the end of a word if it has one."""
    return (
        text if len(text) <= _LENGTH else (text[: _LENGTH + 1].rpartition(" ")[0] or text[:_LENGTH])
    )


def _without(characters: frozenset[str], text: str) -> str:
    """Replace `characters` by spaces, and what Unicode normalisation would turn into them."""
    kept = (" " if characters & set(unicodedata.normalize("NFKC", c)) else c for c in text)
    return " ".join("".join(kept).split())
