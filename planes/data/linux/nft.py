"""libnftables in this process: nft's own language, one call = one atomic transaction.

Called by the driver for the skeleton of a network and the chains of a policy; elements go the fast way
(`nfnetlink`). A context is bound for ever to the namespace of the thread that made it.
"""

import ctypes
import ctypes.util
from functools import cache

from planes.data.linux.tally import count
from planes.data.linux.timings import timed

#: NFT_CTX_OUTPUT_TERSE: listings are without the elements of sets, which are many and read by `nfnetlink`
_TERSE = 1 << 11


class NftError(Exception):
    """A ruleset that the kernel or the library refused; nothing of it was applied."""


@cache
def library() -> ctypes.CDLL:
    """libnftables; raises OSError when the machine has none."""
    loaded = ctypes.CDLL("libnftables.so.1")
    loaded.nft_ctx_new.restype = ctypes.c_void_p
    loaded.nft_ctx_new.argtypes = [ctypes.c_uint32]
    loaded.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    loaded.nft_ctx_output_set_flags.restype = None
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(loaded, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(loaded, name).argtypes = [ctypes.c_void_p]
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return loaded


class Nft:
    """A context bound to the namespace of the calling thread."""

    def __init__(self) -> None:
        self._library = library()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise NftError("libnftables gave no context: out of memory or of file descriptors")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_output_set_flags(self._context, _TERSE)

    def run(self, text: str) -> str:
        """Carry out nft commands as one transaction; what they print."""
        with timed("nft", text.count("\n") + 1):
            failed = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        output = self._library.nft_ctx_get_output_buffer(self._context) or b""
        errors = self._library.nft_ctx_get_error_buffer(self._context) or b""
        count("nft", bool(failed))
        if failed:
            raise NftError(" ".join(errors.decode("utf-8", "replace").split())[:300] or "nft refused the rules")
        return bytes(output).decode()

    def close(self) -> None:
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None
