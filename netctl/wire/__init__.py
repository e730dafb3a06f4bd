"""The control plane's language: messages, their bytes, and the sealed session that carries them."""
