"""Files: those that vrts writes and reads, with one owner for each format, and those it comes with.

What is listed in ``__init__.pyi`` is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
