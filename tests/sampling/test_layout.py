"""How many chunks a video has, and which frames leave with each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.errors import ConfigError
from magi_world.sampling.layout import video_layout


def spans(num_frames: int, **keywords: object) -> list[tuple[int, int]]:
    return video_layout(num_frames, **{"chunk_width": 6, **keywords}).chunk_frames()  # type: ignore[arg-type]


@given(
    num_frames=st.integers(1, 400), width=st.integers(1, 7), prefix=st.integers(0, 20),
    image=st.booleans(),
)  # fmt: skip
def test_the_video_has_exactly_the_frames_asked_for(
    num_frames: int, width: int, prefix: int, image: bool
) -> None:
    layout = video_layout(
        num_frames, chunk_width=width, prefix_latent_frames=prefix,
        from_image=image and prefix == 1 and width > 1,
    )  # fmt: skip
    frames = layout.chunk_frames()
    assert [first for first, _ in frames] == [0, *(stop for _, stop in frames[:-1])]
    assert frames[-1][1] == num_frames
    assert all(0 < stop - first <= 4 * width for first, stop in frames)
    assert layout.num_chunks is not None
    for chunk, (first, stop) in enumerate(frames, start=layout.offset):
        begin, end = layout.latents(chunk)
        # no latent frame leaves that no frame of the video needs
        assert (end - begin - 1) * 4 < stop - first <= (end - begin) * 4


@pytest.mark.parametrize(
    ("prefix", "published", "sane"),
    [
        (0, [24] * 4, [24] * 4),
        (1, [24] * 5, [24] * 4),
        (8, [16, 24, 24, 24, 24], [16, 24, 24, 24, 8]),
    ],
)
def test_four_seconds_as_published_and_by_default(
    prefix: int, published: list[int], sane: list[int]
) -> None:
    for compat, expected in (("magi-1", published), (None, sane)):
        frames = spans(96, prefix_latent_frames=prefix, compat=compat)
        assert [stop - first for first, stop in frames] == expected


def test_a_short_video_may_be_taken_for_what_it_is() -> None:
    assert spans(24, prefix_latent_frames=1, from_image=False) == [(0, 20), (20, 24)]
    with pytest.raises(ConfigError, match="takes a prefix of one latent frame as an image"):
        spans(24, prefix_latent_frames=1, from_image=False, compat="magi-1")
    with pytest.raises(
        ConfigError, match="an image is one latent frame and less than a chunk, the prefix has 3"
    ):
        spans(24, prefix_latent_frames=3, from_image=True)


@pytest.mark.parametrize("num_frames", [0, -4, 1.5])
def test_a_video_without_frames_is_refused(num_frames: int) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        spans(num_frames)


def test_a_video_without_end_has_no_list() -> None:
    endless = video_layout(None, chunk_width=6)
    assert endless.num_chunks is None and endless.frames(100) == (2400, 2424)
    with pytest.raises(ConfigError, match="give num_frames"):
        endless.chunk_frames()
    assert video_layout(None, chunk_width=6, num_generated=3).num_chunks == 3
