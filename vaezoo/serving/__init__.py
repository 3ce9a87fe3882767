"""Exporting models, and asking a server that serves them."""
