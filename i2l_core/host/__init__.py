"""The only room of the core that imports the host: `comfy`, `folder_paths`.

What it uses of the host is listed in `symbols`, and checked here; without ComfyUI's server (`start`) the host comes
later, and is checked then.
"""

from .symbols import check_host, is_here

if is_here():
    check_host()
