"""What one asks of a market: run it, report on it, check it against independent calculations."""
