"""Ad-LLMs on trial (LLM-Auction, arXiv 2512.10551): what they earn, and how they answer to bids.

`trials` says on which requests and bids, `writers` who writes and who judges, `measures` what is
seen of it, `table` the rows and their intervals; `curves` moves one ad's bid, `responses` says what
advertisers would make of that.
"""
