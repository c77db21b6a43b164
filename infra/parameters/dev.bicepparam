// Trying things out: the smallest of everything, turns on a disk that goes with the replica.
using '../main.bicep'

param environmentName = 'voice-dev'
param location = 'eastus2'
param voiceLocation = 'eastus2'
param realtimeCapacity = 1
param transcriptionCapacity = 1
param store = 'sqlite'
param signingKey = readEnvironmentVariable('BROKER_SIGNING_KEY', '')
param metricsToken = readEnvironmentVariable('BROKER_METRICS_TOKEN', '')
param zepApiKey = readEnvironmentVariable('ZEP_API_KEY', '')
