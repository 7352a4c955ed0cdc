"""From noise to chunks: schedules, guidance, the key-value cache and the rollout."""
