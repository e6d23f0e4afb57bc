"""Forgetting: a record leaves the run as if it had never been in it, with a certificate that says how far."""
