#!/bin/sh
# azd runs this after it provisioned: the vault has the signing key now, so the copy on this machine goes.
set -eu

if [ -n "${BROKER_SIGNING_KEY:-}" ]; then
    azd env set BROKER_SIGNING_KEY ""
    azd env set BROKER_SIGNING_KEY_STORED true
fi
