"""Group-relative policy optimisation: rollouts, advantages, objectives, references."""
