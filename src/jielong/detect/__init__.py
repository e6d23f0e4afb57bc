"""Was this generated? Evidence with p-values against named nulls; "generated", "no evidence" or "abstain", never "human"."""
