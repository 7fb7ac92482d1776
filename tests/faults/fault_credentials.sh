#!/bin/sh
# What a profile's credential_process says: another session token at each call, and never one that lasts for long.
printf '{"Version": 1, "AccessKeyId": "test", "SecretAccessKey": "test", "SessionToken": "%s", "Expiration": "%s"}\n' \
    "$(cat /proc/sys/kernel/random/uuid)" "$(date -u -d '+5 minutes' +%Y-%m-%dT%H:%M:%SZ)"
