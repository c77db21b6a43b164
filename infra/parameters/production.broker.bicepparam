// Production: a replica a zone, and as long a drain as the platform grants.
using '../broker.bicep'

param environmentName = 'voice-production'
param voiceLocation = 'eastus2'
param image = readEnvironmentVariable('BROKER_IMAGE')
param brokerAuth = 'entra'
param entraAudience = readEnvironmentVariable('BROKER_ENTRA_AUDIENCE')
param entraRequiredScope = readEnvironmentVariable('BROKER_ENTRA_REQUIRED_SCOPE', '')
param store = 'postgresql'
param minReplicas = 3
param maxReplicas = 30
param cpu = '1.0'
param talksPerReplica = 300
param drainSeconds = 590
