"""Videos in TensorBoard as animated GIFs.

torch's own ``add_video`` needs moviepy 1; with a current moviepy it prints a message and records
nothing, so the summary is encoded here with Pillow, which TensorBoard brings along.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray


def add_video(writer: Any, tag: str, video_THWC: NDArray[np.uint8], step: int, fps: int) -> None:
    """Record a video uint8 `[T, H, W, 3]` under a tag of a SummaryWriter."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    frames = [Image.fromarray(frame) for frame in video_THWC]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=1000 // fps, loop=0
    )
    _, height, width, channels = video_THWC.shape
    image = Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=buffer.getvalue()
    )
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    writer._get_file_writer().add_summary(summary, step)
