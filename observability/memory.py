"""The garbage collector of a process that serves for years: nothing that lives when it begins is looked at again.

Called once by whoever begins to serve, and by what measures as if it did. What a request makes must die with it, by
counting alone: a collection finds next to nothing, and reads all young objects for that.
"""

import gc


def settle() -> None:
    """What lives now lives for ever. Collections are rare from here on, and full ones are as good as never."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
