// What production is, at the smallest size that is still of its kind: two replicas, so that an update rolls.
using '../broker.bicep'

param environmentName = 'voice-staging'
param voiceLocation = 'eastus2'
param image = readEnvironmentVariable('BROKER_IMAGE')
param brokerAuth = 'entra'
param entraAudience = readEnvironmentVariable('BROKER_ENTRA_AUDIENCE')
param entraRequiredScope = readEnvironmentVariable('BROKER_ENTRA_REQUIRED_SCOPE', '')
param store = 'postgresql'
param minReplicas = 2
param maxReplicas = 4
param cpu = '0.5'
param talksPerReplica = 150
param drainSeconds = 120
