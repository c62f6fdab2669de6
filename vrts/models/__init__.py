"""Policies, references, rewards, objectives and the LightningModule that wires them."""
