"""Prompting: what stands before a question changes the answer, and no weight changes."""
