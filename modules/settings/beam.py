"""The section `beam`: the runner of the Beam stages."""

from __future__ import annotations

from modules.settings.base import Line, Settings


class Beam(Settings):
    options: tuple[Line, ...] = (
        "--runner=DirectRunner",
        "--direct_running_mode=in_memory",
        # Nothing runs in a container here. Without a name for one, TFX would build a package of itself, for remote
        # workers, in every stage that uses Beam: seconds and 50 MB each time.
        "--sdk_container_image=unused",
    )
    """Options of the Beam runner, as on its command line."""
