#!/bin/sh
# azd runs this before it provisions: who may ask, or from where, must be said; secrets that only we know are made, once.
set -eu

case ${BROKER_AUTH:-} in
none | easyauth | entra) ;;
*)
    echo "BROKER_AUTH: say who may ask for tokens first: azd env set BROKER_AUTH entra (or easyauth, or none)" >&2
    exit 1
    ;;
esac

# Nobody is asked who they are: then it is said from where they may come.
range='[0-9]{1,3}(\.[0-9]{1,3}){3}/([1-9]|[12][0-9]|3[0-2])'
if [ "$BROKER_AUTH" = none ] && [ -z "${BROKER_ALLOWED_ADDRESSES:-}" ]; then
    echo "BROKER_ALLOWED_ADDRESSES: BROKER_AUTH=none lets in whoever reaches the broker; say from where:" \
        "azd env set BROKER_ALLOWED_ADDRESSES <your public IPv4 address>/32" >&2
    exit 1
fi
if [ -n "${BROKER_ALLOWED_ADDRESSES:-}" ] &&
    ! printf '%s' "$BROKER_ALLOWED_ADDRESSES" | tr '\n' ';' | grep -Eqx "$range( *, *$range)*"; then
    echo "BROKER_ALLOWED_ADDRESSES: give IPv4 ranges such as 203.0.113.9/32, separated by commas, none of them /0" >&2
    exit 1
fi

if [ "${BROKER_SIGNING_KEY_STORED:-}" != true ] && [ -z "${BROKER_SIGNING_KEY:-}" ]; then
    azd env set BROKER_SIGNING_KEY "$(openssl rand -base64 48)"
fi
if [ -z "${BROKER_METRICS_TOKEN:-}" ]; then
    azd env set BROKER_METRICS_TOKEN "$(openssl rand -hex 24)"
fi
