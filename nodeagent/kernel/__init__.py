"""What the agent does to the kernel's links, addresses and routes."""
