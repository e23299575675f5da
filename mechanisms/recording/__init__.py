"""Recording: an LLM writes candidate replies to requests, and a pool keeps all that was measured.

Two ways to write replies with ads (`Design.generation`):

`guided` - guided insertion (DESIGN 3.0) by a mixture of conditions: `reference` (no ads), `guided`
    (all ads, at a larger rate than the reference policy's) and `single:i` (ad i only, so that every
    ad has replies that show it alone). Weights are exact; nothing is scored.
`context` - half the replies without ads, half under a prompt that names the ads, for LLMs that can
    mention an ad when asked. Titles are parsed into the mention symbol and leave both densities;
    all free tokens are scored under both prompts, and weights are against the mixture.
"""

from mechanisms.recording.design import Design, Features, Judgement, Request, Users
from mechanisms.recording.record import describe, record
from mechanisms.recording.storage import load_pool, save_pool

__all__ = [
    "Design",
    "Features",
    "Judgement",
    "Request",
    "Users",
    "describe",
    "load_pool",
    "record",
    "save_pool",
]
