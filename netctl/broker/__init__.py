"""The broker: the only one who decides. State, addresses, plans, the store and the server."""
