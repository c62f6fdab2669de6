"""M-RoPE positions against the rule of transformers 4.49, worked out by hand."""

import pytest
import torch

from vrts.models.families.positions import VideoGrid, prompt_positions, video_positions


def positions_after(prefix: int, grid: VideoGrid, suffix: int) -> tuple[torch.Tensor, int]:
    tokens = grid.t * (grid.h // 2) * (grid.w // 2)
    is_video = torch.tensor([False] * prefix + [True] * tokens + [False] * suffix)
    return prompt_positions(is_video, [grid], merge_size=2)


def test_video_end_follows_the_highest_position():
    grid = VideoGrid(16, 22, 42, seconds_per_grid=3.75, tokens_per_second=2)
    positions, next_position = positions_after(5, grid, 1)
    temporal = positions[0, 5:-1].view(16, -1)
    assert temporal[:, 0].tolist() == [
        5, 12, 20, 27, 35, 42, 50, 57, 65, 72, 80, 87, 95, 102, 110, 117
    ]  # fmt: skip
    assert (temporal == temporal[:, :1]).all()
    assert positions[:, -1].tolist() == [118] * 3
    assert next_position == 119


def test_long_clip():
    grid = VideoGrid(32, 16, 28, seconds_per_grid=18.75, tokens_per_second=2)
    positions, _ = positions_after(15, grid, 1)
    temporal = positions[0, 15:-1].view(32, -1)[:, 0].tolist()
    assert temporal[:3] == [15, 52, 90]
    grid = VideoGrid(16, 16, 28, seconds_per_grid=18.75, tokens_per_second=2)
    positions, next_position = positions_after(15, grid, 1)
    assert positions[0, -2] == 577
    assert positions[:, -1].tolist() == [578] * 3
    assert next_position == 579


def test_height_and_width_count_rows_and_columns():
    positions = video_positions(VideoGrid(2, 4, 6, 1.0, 2), merge_size=2)
    assert positions[1].tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert positions[2].tolist() == [0, 1, 2] * 4
    assert positions[0].tolist() == [0] * 6 + [2] * 6


def test_short_clip_continues_after_its_widest_side():
    _, next_position = positions_after(3, VideoGrid(1, 4, 12, 1.0, 2), 0)
    assert next_position == 3 + 6


def test_qwen2_vl_counts_temporal_patches():
    positions = video_positions(VideoGrid(4, 2, 2, 3.75, None), merge_size=2)
    assert positions[0].tolist() == [0, 1, 2, 3]


def test_two_videos_and_text_between():
    grids = [VideoGrid(2, 2, 2, 1.0, 2), VideoGrid(1, 2, 2, 1.0, 2)]
    is_video = torch.tensor([False, True, True, False, True, False])
    positions, next_position = prompt_positions(is_video, grids, merge_size=2)
    assert positions[0].tolist() == [0, 1, 3, 4, 5, 6]
    assert next_position == 7


def test_wrong_number_of_video_tokens_is_named():
    with pytest.raises(ValueError, match="2 video tokens, its grids 1"):
        prompt_positions(torch.tensor([True, True]), [VideoGrid(1, 2, 2, 1.0, 2)], 2)
