"""The yardstick: a Litestar handler that decodes the same body and answers with one of the same size, and does nothing.

Run as `python -m bench.empty PORT`, on the same server and loop as the real API.
"""

import sys

import uvicorn
from litestar import Litestar, post
from msgspec import Struct

from planes.model.requests import PortCreate


class Body(Struct):
    port: PortCreate


class Answer(Struct):
    port: dict[str, str]


_ANSWER = Answer({f"field_{number}": "x" * 20 for number in range(25)})


@post("/v2.0/ports")
async def create(data: Body) -> Answer:
    return _ANSWER


app = Litestar([create], openapi_config=None)

if __name__ == "__main__":
    port = int(sys.argv[1])
    config = uvicorn.Config(app, port=port, http="httptools", log_level="error", access_log=False, proxy_headers=False)
    uvicorn.Server(config).run()
