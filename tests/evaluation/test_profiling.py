"""What the time of a step goes into."""

import pytest

from magi_world.evaluation.profiling import group_of, profile_steps, summarise
from magi_world.world import World


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("aten::addmm", "matmul"),
        ("aten::bmm", "matmul"),
        ("aten::mkldnn_convolution", "matmul"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_layer_norm", "norms"),
        ("aten::index_copy_", "copies"),
        ("aten::cat", "copies"),
        ("aten::mul", "rest"),
        ("aten::gelu", "rest"),
        ("aten::view", "rest"),
    ],
)
def test_operators_have_a_group(operator: str, group: str) -> None:
    assert group_of(operator) == group


def test_shares_add_up() -> None:
    result = summarise([("aten::mm", 2.0), ("aten::mul", 1.0), ("aten::copy_", 1.0)], seconds=8.0)
    assert result["shares"] == {
        "attention": 0.0, "matmul": 0.5, "norms": 0.0, "copies": 0.25, "rest": 0.25,
    }  # fmt: skip
    assert result["outside_operators"] == pytest.approx(0.5)
    assert result["top"][0] == {"operator": "aten::mm", "share": 0.5}
    assert sum(summarise([], seconds=1.0)["shares"].values()) == 0


def test_a_step_is_profiled(tiny_world: World) -> None:
    rollout = tiny_world.rollout(2, seeds=[0, 1])
    rollout.reset()
    result = profile_steps(rollout, [["strafe left"] * 2] * 3)
    assert result["steps"] == 2
    assert rollout.chunk_index.tolist() == [3, 3]
    assert sum(result["shares"].values()) == pytest.approx(1.0)
    assert result["shares"]["matmul"] > 0 and result["shares"]["attention"] > 0
    assert 0 <= result["outside_operators"] < 1
    assert len(result["top"]) == 10
