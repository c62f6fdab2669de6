"""Reinforcement learning and sparse-to-dense test-time scaling for video language models.

What is listed in ``__init__.pyi`` is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
