"""Firewall backends behind one Protocol."""
