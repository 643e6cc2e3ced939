"""The hypernetwork of the paper (arXiv 2606.13809, section 3): queries of the LoRA layers attend to image tokens."""
