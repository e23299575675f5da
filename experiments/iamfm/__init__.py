"""IAMFM measured where the truth is known: searches, payments, incentives, steering, a market."""
