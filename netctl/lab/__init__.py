"""A whole overlay on one machine: a broker and nodes as real processes, each in a network namespace."""
