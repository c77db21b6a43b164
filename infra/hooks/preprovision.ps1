# azd runs this before it provisions: who may ask must be said, and the secrets that only we know are made, once.
$ErrorActionPreference = 'Stop'

if ($env:BROKER_AUTH -notin 'none', 'easyauth', 'entra') {
    Write-Error 'BROKER_AUTH: say who may ask for tokens first: azd env set BROKER_AUTH entra (or easyauth, or none)'
    exit 1
}

function New-Secret([int] $Bytes) {
    [Convert]::ToHexString([Security.Cryptography.RandomNumberGenerator]::GetBytes($Bytes))
}

if ($env:BROKER_SIGNING_KEY_STORED -ne 'true' -and -not $env:BROKER_SIGNING_KEY) {
    azd env set BROKER_SIGNING_KEY (New-Secret 48)
}
if (-not $env:BROKER_METRICS_TOKEN) {
    azd env set BROKER_METRICS_TOKEN (New-Secret 24)
}
