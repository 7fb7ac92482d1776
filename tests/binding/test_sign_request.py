"""The signer against botocore's, on random requests.

``DTQ_TEST_SIGNATURES`` says how many (default 2,000), ``DTQ_TEST_SEED`` which.
"""

from __future__ import annotations

import os
import random
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from dagster_taskiq import _core

COUNT = int(os.environ.get("DTQ_TEST_SIGNATURES", "2000"))
SEED = int(os.environ.get("DTQ_TEST_SEED", "20260101"))

TEXT = "abcXYZ019-._~ !*'()/:@$&+,;=%\"<>#?[]\\^`{|}äß€漢😀\t"
HEADER_TEXT = "abcXYZ019-._~ !*'()/:@$&+,;=%\"<>#?[]{}  "


def text(r: random.Random, alphabet: str, most: int) -> str:
    return "".join(r.choice(alphabet) for _ in range(r.randrange(most + 1)))


def random_path(r: random.Random) -> str:
    segments = [
        r.choice(["", ".", "..", "a", "queue", "123456789012", quote(text(r, TEXT, 8), safe="")])
        for _ in range(r.randrange(6))
    ]
    return "/" + "/".join(segments)


def random_query(r: random.Random) -> str:
    def pair() -> str:
        name = quote(text(r, TEXT, 5), safe="-._~")
        return f"{name}={quote(text(r, TEXT, 6), safe='-._~')}"

    return "&".join(pair() for _ in range(r.choice([0, 0, 1, 2, 5])))


def random_headers(r: random.Random, host: str) -> list[tuple[str, str]]:
    headers = [
        ("Host", host),
        ("X-Amz-Target", "AmazonSQS.SendMessage"),
        ("Content-Type", "application/x-amz-json-1.0"),
    ]
    for _ in range(r.randrange(6)):
        name = r.choice(["X-Custom", "x-custom", "X-A", "x-b-c", "Accept", "My-Header1"])
        headers.append((name, text(r, HEADER_TEXT, 12)))
    r.shuffle(headers)
    return headers


def random_request(r: random.Random) -> dict[str, Any]:
    host = r.choice(["sqs.eu-central-1.amazonaws.com", "127.0.0.1:9324", "example.com"])
    return {
        "method": r.choice(["GET", "POST", "PUT", "DELETE"]),
        "path": random_path(r),
        "query": random_query(r),
        "headers": random_headers(r, host),
        "body": r.randbytes(r.choice([0, 1, 40, 700])),
        "region": r.choice(["eu-central-1", "us-east-1", "cn-north-1"]),
        "service": r.choice(["sqs", "service"]),
        "access_key_id": "AKID" + text(r, "ABC123", 12),
        "secret_access_key": "s" + text(r, "abc+/XYZ09", 39),
        "session_token": r.choice([None, "t" + text(r, "abc+/=XYZ09", 60)]),
        "time": r.randrange(0, 4_000_000_000),
    }


def botocore_signed(request: dict[str, Any]) -> dict[str, str]:
    host = next(value for name, value in request["headers"] if name == "Host")
    query = f"?{request['query']}" if request["query"] else ""
    aws = AWSRequest(
        method=request["method"], url=f"https://{host}{request['path']}{query}", data=request["body"], headers={}
    )
    for name, value in request["headers"]:
        aws.headers.add_header(name, value)
    moment = datetime.fromtimestamp(request["time"], timezone.utc)
    aws.context["timestamp"] = moment.strftime("%Y%m%dT%H%M%SZ")
    credentials = Credentials(request["access_key_id"], request["secret_access_key"], request["session_token"])
    auth = SigV4Auth(credentials, request["service"], request["region"])
    auth._modify_request_before_signing(aws)
    canonical = auth.canonical_request(aws)
    to_sign = auth.string_to_sign(aws, canonical)
    auth._inject_signature_to_request(aws, auth.signature(to_sign, aws))
    return {
        "authorization": aws.headers["Authorization"],
        "x-amz-date": aws.context["timestamp"],
        "canonical_request": canonical,
        "string_to_sign": to_sign,
    }


@pytest.mark.timeout(1800)
def test_signs_as_botocore_does() -> None:
    r = random.Random(SEED)
    for number in range(COUNT):
        request = random_request(r)
        ours, theirs = _core.sign_request(**request), botocore_signed(request)
        for stage in ("canonical_request", "string_to_sign", "x-amz-date", "authorization"):
            assert ours[stage] == theirs[stage], (number, stage, request)


def test_s3_paths_are_not_normalized() -> None:
    request = {**random_request(random.Random(1)), "path": "/a/../b//c"}
    assert _core.sign_request(**request, normalize_path=False)["canonical_request"].split("\n")[1] == "/a/../b//c"
    assert _core.sign_request(**request)["canonical_request"].split("\n")[1] == "/b/c"


def test_needs_a_host() -> None:
    request = {**random_request(random.Random(1)), "headers": []}
    with pytest.raises(ValueError, match="host"):
        _core.sign_request(**request)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\n", "a\0"], ids=repr)
def test_line_ends_in_headers(value: str) -> None:
    request = random_request(random.Random(1))
    with pytest.raises(ValueError, match="the header X-Own has a control character"):
        _core.sign_request(**{**request, "headers": [*request["headers"], ("X-Own", value)]})


def test_arguments_are_keywords() -> None:
    with pytest.raises(TypeError):
        _core.sign_request("POST")  # type: ignore[misc]
    with pytest.raises(TypeError, match="lacks"):
        _core.sign_request(method="POST")  # type: ignore[call-arg]
