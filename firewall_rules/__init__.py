"""Firewalls as data: what a container may send and receive, and the rulesets that hold it to that."""
