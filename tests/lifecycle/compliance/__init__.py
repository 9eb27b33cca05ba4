"""The compliance report."""
