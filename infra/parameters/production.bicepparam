// Production: zones, a standby for the database, backups in the paired region, logs for a quarter.
using '../main.bicep'

param environmentName = 'voice-production'
param location = 'eastus2'
param voiceLocation = 'eastus2'
param realtimeCapacity = 100
param transcriptionCapacity = 100
param store = 'postgresql'
param databaseSku = 'Standard_D2ds_v5'
param databaseTier = 'GeneralPurpose'
param databaseStorageGB = 128
param databaseHighAvailability = true
param databaseGeoBackup = true
param zoneRedundant = true
param registrySku = 'Standard'
param logRetentionDays = 90
param signingKey = readEnvironmentVariable('BROKER_SIGNING_KEY', '')
param metricsToken = readEnvironmentVariable('BROKER_METRICS_TOKEN', '')
param zepApiKey = readEnvironmentVariable('ZEP_API_KEY', '')
