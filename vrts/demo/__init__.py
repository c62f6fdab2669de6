"""The embedded default: a small Qwen2.5-VL, synthetic video questions, and the main job on them."""
