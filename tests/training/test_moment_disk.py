"""Whether the disk has room for dreamed moments is asked before any is dreamed."""

import shutil
from pathlib import Path

import pytest

from magi_world.agents.fitted_q import Args, train
from magi_world.agents.moments import moment_bytes
from magi_world.errors import AgentError
from magi_world.training.store import Store
from magi_world.world import World
from tests.training.toy import SMALL_FITTED_Q


@pytest.mark.parametrize("hold", [1, 2])
def test_a_disk_without_room_is_named_first(
    hold: int, world: World, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = Args(**SMALL_FITTED_Q, hold=hold)
    agent = train(world, args, tmp_path / "whole", store=store, show=False)
    steps = agent.description["trained"]["steps"] // (3 * hold)
    size = sum(path.stat().st_size for path in (tmp_path / "whole" / "moments").iterdir())
    estimate = moment_bytes(world, hold) * steps
    assert size == pytest.approx(estimate, rel=0.05)
    usage = shutil.disk_usage(tmp_path)
    free = moment_bytes(world, hold) * args.moments - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    with pytest.raises(AgentError, match=r"GB of disk needed under .*, 0.00 GB free"):
        train(world, args, tmp_path / "full", store=store, show=False)
    assert not (tmp_path / "full" / "moments").exists()
    train(world, args, tmp_path / "whole", store=store, resume=True, show=False)  # all is there
