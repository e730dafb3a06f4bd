"""The node agent: makes one host what the broker wants it to be."""
