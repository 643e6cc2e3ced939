"""Keys and values that the attentions of a network see beside their own: what Diffusion Templates make."""
