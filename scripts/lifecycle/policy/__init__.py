"""TODO-header."""
