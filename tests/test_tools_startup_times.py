from __future__ import annotations

from i2l.tools.startup_times import ImportTime, import_times

LOG = """[INFO] Asset seeder disabled
[INFO] 
Import times for custom nodes:
[INFO]    0.0 seconds: /x/custom_nodes/websocket_image_save.py
[INFO]    1.2 seconds (IMPORT FAILED): /x/custom_nodes/other pack
[INFO]   12.3 seconds: /x/custom_nodes/ComfyUI-i2L
[INFO] 
[INFO] 9.9 seconds: not one of them
"""  # noqa: W291 the server writes it so


def test_times_are_read_to_the_end_of_the_list():
    assert import_times(LOG) == [
        ImportTime("websocket_image_save.py", 0.0, loaded=True),
        ImportTime("other pack", 1.2, loaded=False),
        ImportTime("ComfyUI-i2L", 12.3, loaded=True),
    ]


def test_log_without_the_list_gives_nothing():
    assert import_times("[INFO] Starting\n[INFO] 1.0 seconds: /x") == []
