#!/bin/sh
# azd runs this before it provisions: who may ask must be said, and the secrets that only we know are made, once.
set -eu

case ${BROKER_AUTH:-} in
none | easyauth | entra) ;;
*)
    echo "BROKER_AUTH: say who may ask for tokens first: azd env set BROKER_AUTH entra (or easyauth, or none)" >&2
    exit 1
    ;;
esac

if [ "${BROKER_SIGNING_KEY_STORED:-}" != true ] && [ -z "${BROKER_SIGNING_KEY:-}" ]; then
    azd env set BROKER_SIGNING_KEY "$(openssl rand -base64 48)"
fi
if [ -z "${BROKER_METRICS_TOKEN:-}" ]; then
    azd env set BROKER_METRICS_TOKEN "$(openssl rand -hex 24)"
fi
