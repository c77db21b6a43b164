# azd runs this before it provisions: who may ask, or from where, must be said; secrets that only we know are made, once.
$ErrorActionPreference = 'Stop'

if ($env:BROKER_AUTH -notin 'none', 'easyauth', 'entra') {
    Write-Error 'BROKER_AUTH: say who may ask for tokens first: azd env set BROKER_AUTH entra (or easyauth, or none)'
    exit 1
}

# Nobody is asked who they are: then it is said from where they may come.
$range = '\d{1,3}(\.\d{1,3}){3}/([1-9]|[12][0-9]|3[0-2])'
if ($env:BROKER_AUTH -eq 'none' -and -not $env:BROKER_ALLOWED_ADDRESSES) {
    Write-Error 'BROKER_ALLOWED_ADDRESSES: BROKER_AUTH=none lets in whoever reaches the broker; say from where: azd env set BROKER_ALLOWED_ADDRESSES <your public IPv4 address>/32'
    exit 1
}
if ($env:BROKER_ALLOWED_ADDRESSES -and $env:BROKER_ALLOWED_ADDRESSES -notmatch "^$range( *, *$range)*$") {
    Write-Error 'BROKER_ALLOWED_ADDRESSES: give IPv4 ranges such as 203.0.113.9/32, separated by commas, none of them /0'
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
