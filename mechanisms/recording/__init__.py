"""Recording: an LLM writes candidate replies to requests, and a pool keeps all that was measured.

Ways to write replies (`Design.generation`), all with exact importance weights to one
reference:

`reference` - by the reference policy itself, which seldom mentions an ad (weights 1).
`guided` - guided insertion (DESIGN 3.0) by a mixture of conditions: `reference` (no ads), `guided`
    (all ads, at a larger rate than the reference policy's) and `single:i` (ad i only, so that every
    ad has replies that show it alone). Free tokens cancel; nothing is scored.
`context` - under a prompt that names the ads, with guided insertion, and with titles in the LLM's
    own words as mentions if `inline_rate` is above 0; all replies are scored under both prompts.
`mixture` - half `guided`, half `context`; weights are against the mixture of all conditions.

Two more are for mechanisms of their own and depend on bids: `auction` (the LLM reads the bids) and
`token` (the LLMs of all advertisers write together).
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
