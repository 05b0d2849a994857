"""The node's part in capturing requests: what it lets its workers keep, and that nothing is kept for too long.

Workers write (`handlers/capture.py`), and make room as they do; but a node without traffic has to forget, too.
"""

import asyncio
import logging
import time

from deploy.settings import Settings
from handlers.capture import Plan
from handlers.captured import Segments

logger = logging.getLogger(__name__)

MIB = 2**20
LOOK_SECONDS = 60.0
"""Between two looks for what is too old; less where requests are kept for minutes only."""


def capture_plan(settings: Settings) -> Plan:
    """What the settings allow."""
    return Plan(
        directory=str(settings.capture_dir),
        share=settings.capture_share,
        max_bytes=settings.capture_mib * MIB,
        keep_seconds=settings.capture_keep_hours * 3600,
        mask=settings.capture_mask_names,
    )


async def expire(segments: Segments) -> None:
    """Remove what is too old until cancelled, also what a node kept that was allowed to."""
    pause = min(LOOK_SECONDS, segments.keep_seconds / 10)
    while True:
        try:
            await asyncio.to_thread(segments.remove_expired, time.time())
        except OSError as error:
            logger.warning("captured requests that are too old were not removed: %s", error)
        await asyncio.sleep(pause)
