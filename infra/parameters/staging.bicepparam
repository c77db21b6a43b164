// What production is, at the smallest size that is still of its kind.
using '../main.bicep'

param environmentName = 'voice-staging'
param location = 'eastus2'
param voiceLocation = 'eastus2'
param store = 'postgresql'
param databaseSku = 'Standard_B1ms'
param databaseTier = 'Burstable'
param signingKey = readEnvironmentVariable('BROKER_SIGNING_KEY', '')
param metricsToken = readEnvironmentVariable('BROKER_METRICS_TOKEN', '')
param zepApiKey = readEnvironmentVariable('ZEP_API_KEY', '')
