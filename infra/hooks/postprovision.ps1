# azd runs this after it provisioned: the vault has the signing key now, so the copy on this machine goes.
$ErrorActionPreference = 'Stop'

if ($env:BROKER_SIGNING_KEY) {
    azd env set BROKER_SIGNING_KEY ''
    azd env set BROKER_SIGNING_KEY_STORED true
}
