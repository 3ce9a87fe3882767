"""Training a zoo entry into a run folder."""
