"""Docker's network and IPAM driver: the holder of its socket, its calls as data, and what they lead to."""
