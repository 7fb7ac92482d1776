"""Encoders, decoders and signers, driven by payload.py, each in a process of its own.

    python payload_peers.py PEER MESSAGE-FILE BODY-FILE

For each line "OPERATION COUNT" on standard input it says CPU seconds on standard output, as payload.c does.  Nothing
but the peer is imported, since another interpreter than the one with dagster-taskiq may run this.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

REGION = "eu-central-1"
HOST = f"sqs.{REGION}.amazonaws.com"
KEY_ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
HEADERS = {"Content-Type": "application/x-amz-json-1.0", "Host": HOST, "X-Amz-Target": "AmazonSQS.SendMessageBatch"}

Operations = dict[str, Callable[[], object]]


def ours(message: bytes, body: bytes) -> Operations:
    from dagster_taskiq import _core
    from dagster_taskiq.payload import pack, unpack

    task, headers = unpack(message), list(HEADERS.items())

    def sign() -> object:
        # Without the day's key, which only the client keeps, and with the stages.
        return _core.sign_request(
            method="POST",
            path="/",
            query="",
            headers=headers,
            body=body,
            region=REGION,
            service="sqs",
            access_key_id=KEY_ID,
            secret_access_key=SECRET,
            session_token=None,
            time=int(time.time()),
        )

    return {"encode": lambda: pack(task), "decode": lambda: unpack(message), "sign": sign}


def _json(message: bytes, dumps: Callable[[Any], Any], loads: Callable[[Any], Any]) -> Operations:
    """The same message: the task as a JSON text within TaskIQ's message.  Nothing is checked."""
    outer = loads(message)
    task = loads(outer["kwargs"]["task"])

    def encode() -> object:
        text = dumps(task)
        kwargs = {"task": text.decode() if isinstance(text, bytes) else text}
        return dumps({**outer, "task_id": uuid.uuid4().hex, "kwargs": kwargs})

    return {"encode": encode, "decode": lambda: loads(loads(message)["kwargs"]["task"])}


def json_(message: bytes, body: bytes) -> Operations:
    return _json(message, json.dumps, json.loads)


def orjson(message: bytes, body: bytes) -> Operations:
    import orjson

    return _json(message, orjson.dumps, orjson.loads)


def msgspec(message: bytes, body: bytes) -> Operations:
    import msgspec

    return _json(message, msgspec.json.encode, msgspec.json.decode)


def botocore(message: bytes, body: bytes) -> Operations:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    signer = SigV4Auth(Credentials(KEY_ID, SECRET), "sqs", REGION)

    def sign() -> object:
        request = AWSRequest("POST", f"https://{HOST}/", headers=HEADERS, data=body)
        signer.add_auth(request)
        return request.headers["Authorization"]

    return {"sign": sign}


def awscrt(message: bytes, body: bytes) -> Operations:
    from io import BytesIO

    from awscrt.auth import AwsCredentialsProvider, AwsSigningConfig, aws_sign_request
    from awscrt.http import HttpHeaders, HttpRequest

    provider = AwsCredentialsProvider.new_static(KEY_ID, SECRET)
    config = AwsSigningConfig(credentials_provider=provider, region=REGION, service="sqs")

    def sign() -> object:
        request = HttpRequest("POST", "/", HttpHeaders(list(HEADERS.items())), BytesIO(body))
        return aws_sign_request(request, config).result().headers.get("Authorization")

    return {"sign": sign}


PEERS = {"ours": ours, "json": json_, "orjson": orjson, "msgspec": msgspec, "botocore": botocore, "awscrt": awscrt}


def main() -> None:
    name, message, body = sys.argv[1:]
    operations = PEERS[name](Path(message).read_bytes(), Path(body).read_bytes())
    for line in sys.stdin:
        operation, count = line.split()
        run = operations[operation]
        before = time.process_time()
        for _ in range(int(count)):
            run()
        print(f"{time.process_time() - before:.9f}", flush=True)


if __name__ == "__main__":
    main()
