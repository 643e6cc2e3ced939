"""The only room of the core that imports the host: `comfy`, `folder_paths`."""
