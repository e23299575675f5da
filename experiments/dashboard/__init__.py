"""`admarket dashboard`: a market in the browser, to be played and changed, or a finished run.

`stage.py` says what can be played, and makes markets of what is chosen; `replay.py` finds what was
shown in a round; `view.py` makes pictures and HTML of it; `page.py` is the page, on Mesa's
SolaraViz, and `server.py` serves it to this machine alone. Only the last two need solara.
"""
