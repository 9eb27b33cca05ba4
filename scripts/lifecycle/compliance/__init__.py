"""What the compliance report says: one part of it a file; page, PDF, sheet and JSON are made of the same parts."""
