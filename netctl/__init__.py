"""netctl: the control plane of a container overlay network for plain Docker hosts."""

__version__ = "0.1.0"
