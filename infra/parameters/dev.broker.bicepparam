// Trying things out: one small replica, and nobody is asked who they are, so only named addresses reach it.
using '../broker.bicep'

param environmentName = 'voice-dev'
param voiceLocation = 'eastus2'
param image = readEnvironmentVariable('BROKER_IMAGE')
param brokerAuth = 'none'
param allowedAddresses = readEnvironmentVariable('BROKER_ALLOWED_ADDRESSES')
param store = 'sqlite'
param minReplicas = 1
param maxReplicas = 1
param cpu = '0.25'
param talksPerReplica = 50
param drainSeconds = 25
