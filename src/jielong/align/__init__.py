"""From thumbs to a better chat: the reward model, PPO, its baselines, and the loop that closes them."""
