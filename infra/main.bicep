// What lasts: network, vault, voice resource, database, registry, the Container Apps environment. The broker itself is
// broker.bicep, deployed after an image is there; it finds everything made here by name.
//
//   az deployment sub create --location <region> --template-file infra/main.bicep --parameters infra/parameters/dev.bicepparam
targetScope = 'subscription'

metadata description = 'Foundation of the voice token broker'

@description('Name of this environment, such as voice-dev; resources are tagged with it and the resource group is named after it.')
@minLength(2)
@maxLength(32)
param environmentName string

@description('Region of everything but the voice resource.')
param location string

@description('Region of the voice resource: one that has gpt-realtime, as strategies/models.json says.')
@allowed([
  'canadacentral'
  'centralus'
  'eastus2'
  'francecentral'
  'swedencentral'
  'southindia'
])
param voiceLocation string = 'eastus2'

@description('A second voice resource, so that voice survives the loss of the first. none: there is none. standby: it is asked where the first one fails or is full. shared: both take talks alike.')
@allowed([
  'none'
  'standby'
  'shared'
])
param secondVoice string = 'none'

@description('Region of the second voice resource; another one than the first\'s.')
@allowed([
  'canadacentral'
  'centralus'
  'eastus2'
  'francecentral'
  'swedencentral'
  'southindia'
])
param secondVoiceLocation string = 'centralus'

@description('How the broker proves itself to the voice resources. key: the resource key, kept in Key Vault, with Entra as the way out when keys are switched off. entra: the managed identity alone; the resource refuses keys.')
@allowed([
  'key'
  'entra'
])
param voiceAuthentication string = 'key'

@description('Which of a voice resource\'s two keys is put into Key Vault; the other one can be regenerated meanwhile.')
@allowed([
  'key1'
  'key2'
])
param voiceKey string = 'key1'

@description('Realtime model to deploy; the deployment bears its name.')
param realtimeModel string = 'gpt-realtime'

@description('Version of the realtime model; empty takes the one that strategies/models.json names for it.')
param realtimeModelVersion string = ''

@description('Capacity of the realtime deployment, in the units of its SKU.')
@minValue(1)
@maxValue(1000)
param realtimeCapacity int = 10

@description('Transcription model to deploy; the deployment bears its name. Without it talks work, but users\' words stay unwritten.')
param transcriptionModel string = 'gpt-4o-mini-transcribe'

@description('Version of the transcription model; empty takes the one that strategies/models.json names for it.')
param transcriptionModelVersion string = ''

@description('Capacity of the transcription deployment, in the units of its SKU.')
@minValue(1)
@maxValue(1000)
param transcriptionCapacity int = 10

@description('SKU of both deployments; these models are offered with no other.')
@allowed([
  'GlobalStandard'
])
param deploymentSku string = 'GlobalStandard'

@description('AI Foundry project to make; empty makes none. It turns the broker\'s project strategy on.')
@maxLength(64)
param projectName string = ''

@description('Where turns are kept. postgresql: any number of replicas. sqlite: one replica, on a disk that goes with it; for trying out.')
@allowed([
  'postgresql'
  'sqlite'
])
param store string = 'postgresql'

@description('PostgreSQL compute, such as Standard_B1ms or Standard_D2ds_v5.')
param databaseSku string = 'Standard_B1ms'

@description('PostgreSQL tier, which the compute belongs to.')
@allowed([
  'Burstable'
  'GeneralPurpose'
  'MemoryOptimized'
])
param databaseTier string = 'Burstable'

@description('PostgreSQL storage in GB.')
@allowed([
  32
  64
  128
  256
  512
  1024
])
param databaseStorageGB int = 32

@description('A standby for PostgreSQL in another zone; not with the Burstable tier.')
param databaseHighAvailability bool = false

@description('Backups of PostgreSQL in the paired region too. Cannot be changed later.')
param databaseGeoBackup bool = false

@description('Spread the Container Apps environment over availability zones. Cannot be changed later.')
param zoneRedundant bool = false

@description('SKU of the container registry.')
@allowed([
  'Basic'
  'Standard'
  'Premium'
])
param registrySku string = 'Basic'

@description('Days that logs are kept.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('Key that signs session tokens and tickets, at least 32 bytes; several separated by commas, the first signs, all verify. Empty leaves what the vault holds.')
@secure()
param signingKey string = ''

@description('Bearer that /metrics and the full /status want, at least 16 characters. Empty leaves what the vault holds.')
@secure()
param metricsToken string = ''

@description('Zep\'s API key; turns go there then. Empty leaves what the vault holds, or keeps turns in the database alone.')
@secure()
param zepApiKey string = ''

// Versions, retirement dates, regions and SKUs of Azure's models, with the day on which they were read.
var deployed = loadJsonContent('../strategies/models.json').deployed
var realtimeVersion = empty(realtimeModelVersion) ? deployed[realtimeModel] : realtimeModelVersion
var transcriptionVersion = empty(transcriptionModelVersion) ? deployed[transcriptionModel] : transcriptionModelVersion
var sqliteUrl = 'sqlite+aiosqlite:////var/lib/token-broker/token-broker.db'

var tags = {
  'azd-env-name': environmentName
}

// https://learn.microsoft.com/azure/templates/microsoft.resources/2025-04-01/resourcegroups
resource group 'Microsoft.Resources/resourceGroups@2025-04-01' = {
  name: 'rg-${environmentName}'
  location: location
  tags: tags
}

module observability 'modules/observability.bicep' = {
  scope: group
  params: {
    location: location
    tags: tags
    retentionDays: logRetentionDays
  }
}

module identity 'modules/identity.bicep' = {
  scope: group
  params: {
    location: location
    tags: tags
  }
}

module network 'modules/network.bicep' = {
  scope: group
  params: {
    location: location
    tags: tags
  }
}

module voice 'modules/voice.bicep' = {
  scope: group
  params: {
    nameSuffix: ''
    location: voiceLocation
    tags: tags
    workspaceId: observability.outputs.workspaceId
    principalId: identity.outputs.principalId
    disableLocalAuth: voiceAuthentication == 'entra'
    realtimeModel: realtimeModel
    realtimeModelVersion: realtimeVersion
    realtimeCapacity: realtimeCapacity
    transcriptionModel: transcriptionModel
    transcriptionModelVersion: transcriptionVersion
    transcriptionCapacity: transcriptionCapacity
    deploymentSku: deploymentSku
    projectName: projectName
  }
}

module otherVoice 'modules/voice.bicep' = if (secondVoice != 'none') {
  scope: group
  params: {
    nameSuffix: '2'
    location: secondVoiceLocation
    tags: tags
    workspaceId: observability.outputs.workspaceId
    principalId: identity.outputs.principalId
    disableLocalAuth: voiceAuthentication == 'entra'
    realtimeModel: realtimeModel
    realtimeModelVersion: realtimeVersion
    realtimeCapacity: realtimeCapacity
    transcriptionModel: transcriptionModel
    transcriptionModelVersion: transcriptionVersion
    transcriptionCapacity: transcriptionCapacity
    deploymentSku: deploymentSku
    projectName: projectName
  }
}

module database 'modules/database.bicep' = if (store == 'postgresql') {
  scope: group
  params: {
    location: location
    tags: tags
    workspaceId: observability.outputs.workspaceId
    subnetId: network.outputs.databaseSubnetId
    privateDnsZoneId: network.outputs.databaseDnsZoneId
    principalId: identity.outputs.principalId
    principalName: identity.outputs.name
    skuName: databaseSku
    skuTier: databaseTier
    storageGB: databaseStorageGB
    highAvailability: databaseHighAvailability
    geoBackup: databaseGeoBackup
  }
}

module vault 'modules/vault.bicep' = {
  scope: group
  params: {
    location: location
    tags: tags
    workspaceId: observability.outputs.workspaceId
    subnetId: network.outputs.endpointsSubnetId
    privateDnsZoneId: network.outputs.vaultDnsZoneId
    principalId: identity.outputs.principalId
    voiceAccountName: voice.outputs.name
    otherVoiceAccountName: secondVoice == 'none' ? '' : otherVoice!.outputs.name
    storeVoiceKey: voiceAuthentication == 'key'
    voiceKey: voiceKey
    databaseUrl: store == 'postgresql' ? database!.outputs.url : sqliteUrl
    signingKey: signingKey
    metricsToken: metricsToken
    zepApiKey: zepApiKey
  }
}

module registry 'modules/registry.bicep' = {
  scope: group
  params: {
    location: location
    tags: tags
    workspaceId: observability.outputs.workspaceId
    principalId: identity.outputs.principalId
    skuName: registrySku
  }
}

module apps 'modules/environment.bicep' = {
  scope: group
  params: {
    location: location
    tags: tags
    workspaceId: observability.outputs.workspaceId
    subnetId: network.outputs.appsSubnetId
    zoneRedundant: zoneRedundant
  }
}

// azd keeps these in its environment, and fills broker.parameters.json with them.
@description('Resource group of all this; broker.bicep is deployed into it.')
output AZURE_RESOURCE_GROUP string = group.name

@description('Where images are pushed to.')
output AZURE_CONTAINER_REGISTRY_ENDPOINT string = registry.outputs.loginServer

@description('Name of the registry, for az acr build.')
output AZURE_CONTAINER_REGISTRY_NAME string = registry.outputs.name

@description('Name of the vault that holds the broker\'s secrets.')
output AZURE_KEY_VAULT_NAME string = vault.outputs.name

@description('The voice resource\'s unified endpoint.')
output AZURE_VOICELIVE_ENDPOINT string = voice.outputs.endpoint

@description('The second voice resource\'s unified endpoint, empty if there is none.')
output AZURE_SECOND_VOICE_ENDPOINT string = secondVoice == 'none' ? '' : otherVoice!.outputs.endpoint

@description('Deployment that broker.bicep names as the model.')
output AZURE_VOICELIVE_MODEL string = voice.outputs.realtimeDeployment

@description('Deployment that broker.bicep names for transcription.')
output AZURE_VOICELIVE_TRANSCRIPTION_MODEL string = voice.outputs.transcriptionDeployment

@description('AI Foundry project, empty if none was made.')
output AZURE_VOICELIVE_PROJECT_NAME string = projectName

@description('How the broker proves itself to the voice resource.')
output BROKER_VOICE_AUTHENTICATION string = voiceAuthentication

@description('Where turns are kept.')
output BROKER_STORE string = store

@description('Name of the Container Apps environment.')
output AZURE_CONTAINER_APPS_ENVIRONMENT_NAME string = apps.outputs.name
